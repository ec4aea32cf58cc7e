"""The notebooks run, from top to bottom; beside each script lies its conversion."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))

UPDATE = "run: jupytext --to ipynb --execute notebooks/*.py"

scripts = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


def test_there_are_four_notebooks_and_no_other():
    assert [path.stem[:3] for path in SCRIPTS] == ["01_", "02_", "03_", "04_"]
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [path.stem for path in found] == [path.stem for path in SCRIPTS]


@scripts
def test_a_notebook_is_the_conversion_of_its_script(path):
    script, notebook = (jupytext.read(path.with_suffix(s)) for s in (".py", ".ipynb"))
    pairs = [
        [(cell.cell_type, cell.source) for cell in one.cells]
        for one in (script, notebook)
    ]
    assert pairs[0] == pairs[1], UPDATE


@scripts
def test_a_notebook_shows_what_it_printed_and_drew(path):
    cells = jupytext.read(path.with_suffix(".ipynb")).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    numbers = [cell.execution_count for cell in code]
    assert numbers == list(range(1, len(code) + 1)), UPDATE
    outputs = [output for cell in code for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds <= {"stream", "execute_result", "display_data"}
    assert any(output.get("name") == "stdout" for output in outputs)
    assert path.with_suffix(".ipynb").stat().st_size < 500_000


@scripts
def test_a_notebook_asserts_what_it_says(path):
    """Every section has its numbers; a script without would run whatever happened."""
    assert len(re.findall(r"^ *assert ", path.read_text(), flags=re.MULTILINE)) >= 8


def test_numbers_cited_from_the_comparison_stand_there():
    """A cited row is a part of the row of that name, its columns named alike."""
    text = (ROOT / "benchmarks" / "comparisons.md").read_text()
    page = text.split("## Digits")[0]
    there, cited = rows(page), rows((ROOT / "notebooks" / "04_judging.py").read_text())
    assert len(cited) >= 5
    for name, cells in cited.items():
        assert cells.items() <= there[name].items(), name


def rows(text):
    """Of the markdown table whose head names `Acc_f`: name -> column -> cell."""
    lines = [line.removeprefix("# ").strip() for line in text.splitlines()]
    table = [line[1:-1].split("|") for line in lines if line.startswith("|")]
    table = [[cell.strip() for cell in cells] for cells in table]
    starts = [i for i, cells in enumerate(table) if "Acc_f" in cells]
    assert len(starts) == 1
    head, *body = table[starts[0] :]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in body[1:]}


@pytest.mark.long
@scripts
def test_a_notebook_runs(path):
    # In a process of its own, as it sets what holds for a whole process.
    environment = dict(os.environ, MPLBACKEND="Agg", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-W", "error", str(path)]
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout
