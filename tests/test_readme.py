"""What the README shows is what happens."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(code, name, namespace=None):
    printed = io.StringIO()
    namespace = {"__name__": "__main__"} if namespace is None else namespace
    with contextlib.redirect_stdout(printed):
        exec(compile(code, name, "exec"), namespace)  # noqa: S102
    return printed.getvalue()


def numbers(text):
    return [float(n) for n in re.findall(r"\d+\.\d+", text)]


@pytest.mark.long
@pytest.mark.core
def test_the_readmes_python_prints_what_the_readme_says():
    first, *others = blocks("python")
    _, shown = blocks("text")
    namespace = {"__name__": "__main__"}
    printed = run(first, "README.md", namespace)
    for code in others:  # they go on from there
        assert run(code, "README.md", namespace) == ""
    assert re.sub(r"\s*\d+\.\d+", "#", printed).strip() == (
        re.sub(r"\s*\d+\.\d+", "#", shown).strip()
    )
    # Accuracies in percent of 36 images a class: another machine may round one over.
    pairs = zip(numbers(printed), numbers(shown), strict=True)
    assert all(abs(a - b) < 6 for a, b in pairs)


def test_the_readmes_files_are_there():
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)
