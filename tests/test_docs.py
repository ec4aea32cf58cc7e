"""The pages of the documentation: complete, linked, and true.

Pages with a test of their own, beside what they describe, are not run here again.
"""

import ast
import contextlib
import io
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import jaxunlearn as ju

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PACKAGES = ("augmentation", "datasets", "methods", "metrics", "models", "training")
RUN = (
    *("composing", "data", "difficulty", "extending", "inverting", "ledger"),
    *("networks", "progress", "pytorch", "rates", "requests"),
)


def public_names():
    """`freeze`, `metrics.tow`: what is defined, or handed on under its own name."""
    top = {name for name in dir(ju) if not name.startswith("_")} - {*PACKAGES}
    names = set(top)
    for package in PACKAGES:
        module = getattr(ju, package)
        for node in ast.parse(Path(module.__file__).read_text()).body:
            for name in defined(node):
                same = name in top and getattr(ju, name) is getattr(module, name)
                if not name.startswith("_") and not same:
                    names.add(f"{package}.{name}")
    # A module, of which functions are shown.
    names.remove("models.torch_weights")
    return names


def defined(node):
    if isinstance(node, ast.ImportFrom):
        return [alias.name for alias in node.names if alias.name == alias.asname]
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) else []


def shown():
    text = "\n".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    return re.findall(r"^::: jaxunlearn\.(\S+)$", text, flags=re.MULTILINE)


def test_the_api_pages_show_every_public_name_once():
    names = shown()
    assert len({*names}) == len(names)
    further = {n for n in names if n.startswith("models.torch_")}
    assert further
    assert public_names() == {*names} - further


def test_what_the_api_pages_show_is_there():
    from jaxunlearn.models import torch_files

    assert torch_files
    for name in shown():
        found = ju
        for part in name.split("."):
            found = getattr(found, part)


def test_every_page_stands_in_the_navigation():
    listed = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == [path.relative_to(DOCS).as_posix() for path in PAGES]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.is_file(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
        assert not anchor or anchor in slugs, link


def test_every_statement_of_the_mathematics_names_tests_that_exist():
    text = (DOCS / "mathematics.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    for section in sections:
        proofs = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", section)
        assert proofs, section.partition("\n")[0]
        for file, name in proofs:
            body = ast.parse((ROOT / file).read_text()).body
            assert name in {getattr(node, "name", "") for node in body}, (file, name)


@pytest.fixture
def trackers(monkeypatch):
    """Stands for packages that are not installed here; what they are told."""
    told = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            told.append((name, step))

    run = SimpleNamespace(log=lambda record, step=None: told.append(record))
    wandb, board = ModuleType("wandb"), ModuleType("tensorboardX")
    wandb.init, board.SummaryWriter = lambda **_: run, Writer
    for module in (wandb, board):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return told


@pytest.mark.long
@pytest.mark.parametrize("name", RUN)
def test_the_python_of_a_page_runs(name, tmp_path, monkeypatch, trackers):
    monkeypatch.chdir(tmp_path)
    tables = ju.methods.by_name, ju.metrics.METRICS, ju.metrics.AUDITS
    before = [dict(table) for table in tables]
    text = (DOCS / f"{name}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            names = {"__name__": "__main__"}
            for code in blocks:
                exec(compile(code, f"{name}.md", "exec"), names)  # noqa: S102
    finally:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
    assert bool(trackers) == (name == "progress")
