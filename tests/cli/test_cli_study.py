"""`jaxunlearn study`: stored questions, what is made of them, and what is said."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jaxunlearn import cli
from jaxunlearn.cli import study
from jaxunlearn.cli.comparison import COLUMNS
from jaxunlearn.cli.study import Question, names, question
from jaxunlearn.cli.study_plot import plot_study

ROOT = Path(__file__).parents[2]
QUICK = (
    "--forget 3 --options width=2 --recipe.epochs 1 --seeds 0 1 "
    "--which accuracy class-mean --learning-rates 0.1 --methods"
)
TINY = Question(
    question="Does a mask forget?",
    source="nobody",
    comparisons={"masks": f"{QUICK} mask-head", "labels": f"{QUICK} random-labels"},
    measures=("accuracy/retained", "class-mean"),
    answer=("It does not.",),
)


@pytest.mark.parametrize("name", names())
def test_every_stored_study_is_made_of_comparisons(name):
    asked = question(name)
    assert asked.question.endswith("?")
    assert set(asked.measures) <= set(COLUMNS)
    for settings in (*asked.settings().values(), *asked.settings(full=True).values()):
        assert len(settings.methods) > 1
    assert len(asked.answer) in (0, 5)
    page = (ROOT / "benchmarks" / "studies" / "README.md").read_text()
    assert asked.question in page
    for line in asked.answer:
        assert line in " ".join(page.split())


def test_all_are_listed(capsys):
    assert cli.main(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in names())


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "names", lambda: ["tiny"])
    monkeypatch.setattr(study, "question", lambda name: TINY)


@pytest.mark.long
def test_a_study_makes_tables_a_plot_and_an_answer(tiny, capsys, monkeypatch):
    assert cli.main(["study", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "Does a mask forget?\nIt does not.\n" in said
    folder = Path("runs/studies/tiny")
    page = (folder / "study.md").read_text()
    assert page.index("It does not.") < page.index("mask-head") < page.index("random-")
    plot = (folder / "study.svg").read_bytes()
    made = {p: p.stat().st_mtime_ns for p in folder.glob("*/comparison.json")}
    assert len(made) == 2

    # Again: nothing is made but what is missing, and the plot is the same file.
    shutil.rmtree(folder / "labels")
    assert cli.main(["study", "tiny"]) == 0
    assert (folder / "study.svg").read_bytes() == plot
    path = folder / "masks" / "comparison.json"
    assert path.stat().st_mtime_ns == made[path]

    # Of other settings it is not taken for this study's.
    other = {"masks": f"{QUICK} mask-head covarnav:inversion_steps=1"}
    changed = dataclasses.replace(TINY, comparisons=other)
    monkeypatch.setattr(study, "question", lambda name: changed)
    assert cli.main(["study", "tiny"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_plot_shows_every_row_but_the_retrained(tmp_path):
    found = {"gap": 1.5, "gap_half_width": 0.5, "floor": 2.0, "within": True}
    rows = {
        "original": {"probe": found | {"gap": 9.0, "within": False}},
        "retrained": {"probe": found | {"gap": None}},
        "<unsc> & $x$": {"probe": found | {"gap_half_width": None}},
        "empty": {},
    }
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        plot_study(path, {"digits": rows}, ["probe"], "What?")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    text = paths[0].read_text()
    assert "retrained" not in text


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["tinny"], "did you mean tiny?"),
        (["tiny", "--full"], "has no larger form"),
        (["tiny", "--seeds", "0"], "no flag --seeds"),
    ],
)
def test_what_is_not_there_is_refused(tiny, flags, sentence, capsys):
    assert cli.main(["study", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_the_folder_holds_nothing_else():
    folder = Path(study.__file__).parent / "studies"
    assert sorted(f"{name}.json" for name in names()) == sorted(
        path.name for path in folder.iterdir()
    )
    for path in folder.iterdir():
        assert set(json.loads(path.read_text())) <= {
            field.name for field in dataclasses.fields(Question)
        }
