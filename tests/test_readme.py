"""What the README and the notebooks show is what happens."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(code, name):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, name, "exec"), {"__name__": "__main__"})  # noqa: S102
    return printed.getvalue()


def numbers(text):
    return [float(n) for n in re.findall(r"\d+\.\d+", text)]


@pytest.mark.core
def test_the_readmes_python_prints_what_the_readme_says():
    (code,) = blocks("python")
    _, shown = blocks("text")
    printed = run(code, "README.md")
    assert re.sub(r"\s*\d+\.\d+", "#", printed).strip() == (
        re.sub(r"\s*\d+\.\d+", "#", shown).strip()
    )
    # Accuracies in percent of 36 images a class: another machine may round one over.
    pairs = zip(numbers(printed), numbers(shown), strict=True)
    assert all(abs(a - b) < 6 for a, b in pairs)


def test_the_readmes_files_are_there():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_a_script(path):
    assert run(path.read_text(), str(path))


def test_there_are_notebooks():
    assert NOTEBOOKS
