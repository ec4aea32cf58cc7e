"""`jaxunlearn study`: stored questions, what is made of them, and what is said."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import jax
import pytest

from jaxunlearn import cli
from jaxunlearn.cli import study
from jaxunlearn.cli.comparison import COLUMNS, Column
from jaxunlearn.cli.measurements import MEASUREMENTS, Measured, Measurement
from jaxunlearn.cli.study import Question, names, question
from jaxunlearn.cli.study_page import correlations
from jaxunlearn.cli.study_plot import plot_study
from jaxunlearn.cli.variants import variants
from jaxunlearn.metrics.audits import AUDITS

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
def test_every_stored_study_can_be_made(name):
    asked = question(name)
    assert asked.question.endswith("?")
    shown = {*asked.measures, *(n for pair in asked.correlated for n in pair)}
    assert shown <= set(asked.columns)
    assert asked.comparisons or asked.measured
    audits = {name.split("/")[0] for name in shown} & set(AUDITS)
    stored = asked.settings()
    for title, settings in (*stored.items(), *asked.settings(full=True).items()):
        assert variants(settings, settings.methods)
        assert title in asked.measured or audits <= set(settings.audits())
    for title, one in asked.measured.items():
        assert len(stored[title].forget) == 1
        function = MEASUREMENTS[one.measurement].function
        inspect.signature(function).bind(None, **one.arguments)
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
        plot_study(path, {"digits": rows}, {"probe": "recall"}, "What?")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    text = paths[0].read_text()
    assert "retrained" not in text
    assert "recall, gap" in text


def test_a_plot_of_what_has_no_target_shows_values(tmp_path):
    found = {"mean": 3.0, "half_width": None, "gap": None, "within": None}
    rows = {"unsc, 16": {"rank": found}, "unsc, all": {"rank": found | {"mean": 7.0}}}
    plot_study(tmp_path / "a.svg", {"digits": rows}, {"rank": "rank"}, "What?")
    text = (tmp_path / "a.svg").read_text()
    assert "rank" in text
    assert "rank, gap" not in text


def test_a_rank_correlation_is_over_rows_that_have_both():
    means = [(1, 30), (2, 10), (3, 20), (4, 5)]
    rows = {
        str(n): {"probe": {"mean": a}, "tow": {"mean": b}}
        for n, (a, b) in enumerate(means)
    }
    rows["without"] = {"probe": {"mean": 99}}
    (said,) = correlations({"digits": rows}, [("probe", "tow")], COLUMNS)
    # 1 - 6 sum d^2 / (n (n^2 - 1)), d = ranks (1, 2, 3, 4) - (4, 2, 3, 1).
    assert f"probe and ToW {1 - 6 * 18 / 60:+.2f} over 4 rows" in said
    few = dict(list(rows.items())[:2])
    assert correlations({"digits": few}, [("probe", "tow")], COLUMNS) == []


@pytest.mark.long
def test_a_measurement_is_summed_up_over_seeds_and_kept(tiny, monkeypatch, capsys):
    calls = []

    def count(given, *, factor):
        calls.append(given.classes)
        seed = int(jax.random.key_data(given.key)[-1] % 97)
        return {"all": {"samples": float(factor * len(given.train)), "seed": seed}}

    columns = {"samples": Column("n", ".0f", "samples"), "seed": Column("s", ".0f", "")}
    monkeypatch.setitem(MEASUREMENTS, "count", Measurement(count, columns))
    command = f"{QUICK} mask-head"
    asked = Measured(measurement="count", command=command, arguments={"factor": 2})
    tiny_measured = dataclasses.replace(
        TINY, comparisons={}, measured={"digits": asked}, measures=("samples",)
    )
    monkeypatch.setattr(study, "question", lambda name: tiny_measured)
    for _ in range(2):
        assert cli.main(["study", "tiny"]) == 0
    assert calls == [(3,), (3,)]
    stored = json.loads(Path("runs/studies/tiny/digits.json").read_text())
    row = stored["rows"]["all"]
    assert row["samples"]["mean"] == 2 * 1294
    assert row["samples"]["half_width"] == 0
    assert row["seed"]["half_width"] > 0
    page = Path("runs/studies/tiny/study.md").read_text()
    assert "| all" in page
    assert "2588 ± 0" in page


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
