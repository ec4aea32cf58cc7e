"""`jaxunlearn reproduce`: what is stored, what is made again, and what is said."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import outputs
import pytest
from scipy import stats

from jaxunlearn import cli
from jaxunlearn.cli import published as stored
from jaxunlearn.cli import reproduce
from jaxunlearn.cli.comparison import Measure, summarise
from jaxunlearn.cli.published import (
    MEASURES,
    Published,
    compared,
    hashes,
    intervals,
    most_outside,
    names,
    published,
)
from jaxunlearn.cli.variants import variants
from jaxunlearn.serialization import to_dict

ROOT = Path(__file__).parents[2]
TINY = Published(
    about="Digits.",
    where="nowhere",
    command="--forget 3 --options width=2 --recipe.epochs 1 --seeds 0 1 "
    "--which accuracy class-mean --learning-rates 0.1 --methods mask-head",
)


@pytest.mark.parametrize("name", names())
def test_every_stored_comparison_is_one_of_the_command(name):
    entry = published(name)
    settings = entry.settings()

    rows = {variant.title for variant in variants(settings, settings.methods)}
    rows |= {"original", "retrained"}
    assert set(entry.others) <= rows
    assert (ROOT / entry.where).is_file()
    assert bool(entry.intervals) == (not entry.awaits)
    if entry.awaits:
        return
    assert set(entry.intervals) == rows
    assert all(len(sha256) == 64 for sha256 in entry.forgets.values())
    assert set(entry.forgets) == set(settings.forget)
    for measures in entry.intervals.values():
        assert {"accuracy/forgotten", "accuracy/retained"} <= set(measures)
        assert set(measures) <= set(MEASURES)
        assert all(low < high for low, high in measures.values())


def test_the_page_and_the_list_have_all_of_them(capsys):
    page = (ROOT / "docs" / "reproducing.md").read_text()
    assert cli.main(["reproduce"]) == 0
    listed = capsys.readouterr().out
    for name in names():
        assert f"| `{name}` |" in page
        assert name in listed
    assert "a GPU" in listed


def test_an_interval_is_that_of_another_mean_of_as_many_seeds():
    values, measures = np.asarray([64.0, 66.5, 63.1]), ("probe", "share")
    rows = {
        "unsc": summarise([[dict.fromkeys(measures, Measure(v))] for v in values]),
        "mask-head": summarise([[{"probe": Measure(50.0)}] for _ in values]),
    }
    found = intervals([{"rows": {}}, to_dict({"rows": rows})])
    low, high = stats.t.interval(
        0.95, 2, loc=values.mean(), scale=values.std(ddof=1) * math.sqrt(1 / 3 + 1 / 3)
    )
    assert list(found["unsc"]) == ["probe"]  # seconds are of the machine
    np.testing.assert_allclose(found["unsc"]["probe"], (low, high))
    np.testing.assert_allclose(found["mask-head"]["probe"], (49.5, 50.5))


def test_a_bound_has_no_interval():
    rows = {"unsc": summarise([[{"relearn": Measure(300.0, bound=">")}]] * 2)}
    assert intervals([to_dict({"rows": rows})]) == {}


def test_a_number_is_within_outside_or_missing():
    known = {"unsc": {"probe": (60.0, 70.0), "class-mean": (1.0, 2.0)}, "new": {}}
    known["new"] = {"probe": (1.0, 2.0)}
    rows = {"unsc": {"probe": {"mean": 70.0}, "class-mean": {"mean": 2.5}}}
    found = compared(known, [{"rows": rows}])
    assert [(one.row, one.measure, one.within) for one in found] == [
        ("unsc", "probe", True),
        ("unsc", "class-mean", False),
        ("new", "probe", False),
    ]
    assert math.isnan(found[2].value)


@pytest.mark.parametrize("count", [1, 20, 137])
def test_chance_explains_so_many_outside(count):
    chances = [
        math.comb(count, k) * 0.05**k * 0.95 ** (count - k) for k in range(count + 1)
    ]
    most = most_outside(count)
    assert sum(chances[: most + 1]) >= 0.99 > sum(chances[:most])


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A comparison that takes seconds, in a folder of its own; set what is stored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "names", lambda: ["tiny"])

    def store(**fields):
        entry = dataclasses.replace(TINY, **fields)
        monkeypatch.setattr(reproduce, "published", lambda name: entry)

    store()
    return store


@pytest.mark.long
def test_made_again_it_is_reproduced_and_something_else_is_not(tiny, capsys):
    settings = TINY.settings()
    known = hashes(settings, settings.load("train"))
    tiny(forgets=known, awaits="a quiet hour", others={"mask-head": {"probe": 1.0}})
    assert cli.main(["reproduce", "tiny"]) == 0
    assert "No intervals are stored yet: a quiet hour." in capsys.readouterr().out
    folder = Path("runs/reproduce/tiny")
    made = json.loads((folder / "comparison.json").read_text())

    others = {"mask-head": {"accuracy/forgotten": 0.67}}
    tiny(forgets=known, intervals=intervals(made["tables"]), others=others)
    assert cli.main(["reproduce", "tiny", "--overwrite"]) == 0
    said = capsys.readouterr().out
    assert "means lie within their 95 % intervals" in said
    assert said.rstrip().endswith(": reproduced.")
    assert "0.67" in said
    record = json.loads(Path("runs/reproduce/tiny.json").read_text())
    assert record["reproduced"] is True
    assert all(one["within"] for one in record["numbers"])
    outputs.check_keys(record, "reproduction", complete=["reproduction"])

    # What is there, of the same settings, is not made again.
    path = folder / "comparison.json"
    written = path.stat().st_mtime_ns
    assert cli.main(["reproduce", "tiny"]) == 0
    assert path.stat().st_mtime_ns == written

    wrong = {row: dict.fromkeys(MEASURES[:5], (101.0, 102.0)) for row in ("original",)}
    tiny(forgets=known, intervals=wrong)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["reproduce", "tiny", "--overwrite"])
    said = capsys.readouterr().out
    assert "Outside their intervals" in said
    assert said.rstrip().endswith("NOT reproduced.")


def test_other_data_are_refused_before_anything_is_trained(tiny, capsys):
    tiny(forgets={"3": "0" * 64})
    assert cli.main(["reproduce", "tiny"]) == 2
    assert "are others than those of the published numbers" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["digits-clas-3"], "did you mean digits-class-3"),
        (["--seeds", "0"], "no flag --seeds"),
    ],
)
def test_other_names_and_flags_are_refused(flags, sentence, capsys):
    assert cli.main(["reproduce", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_the_folder_holds_nothing_else():
    folder = Path(stored.__file__).parent / "comparisons"
    assert sorted(f"{name}.json" for name in names()) == sorted(
        path.name for path in folder.iterdir()
    )
