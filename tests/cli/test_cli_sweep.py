"""`jaxunlearn sweep`: what it prints, what it leaves behind, what it refuses."""

import json
import re

import numpy as np
import outputs
import pytest

from jaxunlearn import training
from jaxunlearn.cli import main, sweep
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.flags import parse
from jaxunlearn.datasets import load
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.models.files import load_classifier
from jaxunlearn.tasks import Data

long = pytest.mark.long

TINY = (
    *("--recipe.epochs", "2", "--options", "width=4", "--unsc.steps", "3"),
    *("--learning-rates", "0.1", "1"),
)


CLASSES, RETRAINED = ("3", "0-1"), "-retrained"


def cli(*flags):
    """The exit code."""
    try:
        return main(["sweep", *map(str, flags)])
    except SystemExit as exit:  # after --help
        return exit.code


def request(forgotten, *, retrained=None):
    """What a sweep keeps of a request, as far as its table and picture read it."""
    same = {"retained": 90.0, "forgotten": forgotten}
    return {
        "forget": [3],
        "test": {**same, "class_names": None},
        "before": {"retained": 80.0, "forgotten": 70.0},
        "retrained": retrained,
        "retained_logit_change": 0.5,
    }


def strict(path):
    """JSON without NaN and its kin."""

    def refuse(name):
        pytest.fail(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny sweep over two sets of classes, its classifiers saved."""
    out = tmp_path_factory.mktemp("sweeps") / "two"
    flags = ("--forget", "3", "0,1", "--save-classifiers", "--out", out)
    assert cli(*TINY, *flags) == 0
    return out


def test_the_table_has_the_retrained_networks_beside(capsys):
    records = [
        request(2.0, retrained={"retained": 95.0, "forgotten": 1.0}),
        request(4.0, retrained={"retained": 97.0, "forgotten": 0.0}),
    ]
    consoles()[0].print(sweep._table(records, "a title"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in lines if line]
    assert shown[1][3:5] == ["before", "retrained"]
    assert shown[3][3:] == ["95.00", "2.00", "70.00", "1.00", "0.500"]
    assert shown[-1] == [
        "mean",
        "90.00",
        "80.00",
        "96.00",
        "3.00",
        "70.00",
        "0.50",
        "0.500",
    ]


def test_without_retrained_networks_the_table_has_no_column_for_them(capsys):
    consoles()[0].print(sweep._table([request(2.0)], "a title"))
    assert "retrained" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "size", "expected"),
    [
        ([], 5000, True),
        ([], 5001, False),
        (["--retrained"], 5001, True),
        (["--no-retrained"], 10, False),
    ],
)
def test_small_data_sets_are_retrained_unless_told(flag, size, expected):
    settings = parse("sweep", sweep.Sweep, flag)
    data = Data(np.zeros((size, 1, 1, 1), np.uint8), np.zeros(size, np.int32))
    assert settings.retrains(data) is expected


@long
def test_a_sweep_leaves_a_folder_with_all_classifiers(finished):
    assert {path.name for path in finished.parent.iterdir()} == {"two"}
    titles = ("original", *(f"forget-{c}{e}" for c in CLASSES for e in ("", RETRAINED)))
    expected = {f"{t}{end}" for t in titles for end in (".json", ".safetensors")}
    expected |= {"sweep.json", "accuracies.png", "accuracies.pdf"}
    assert {path.name for path in finished.iterdir()} == expected
    found, test = strict(finished / "sweep.json"), load("digits", "test")
    outputs.check_keys(found, "sweep.json", complete=["sweep.json", "evaluation"])
    assert found["passes"] == {"statistics": 1, "labels": 1}
    original, card = load_classifier(finished / "original.safetensors")
    assert card.forgotten == ()
    for record, classes in zip(found["requests"], ([3], [0, 1]), strict=True):
        assert record["forget"] == classes
        name = "-".join(map(str, classes))
        unlearned, card = load_classifier(finished / f"forget-{name}.safetensors")
        assert list(card.forgotten) == classes
        target, card = load_classifier(
            finished / f"forget-{name}{RETRAINED}.safetensors"
        )
        assert (card.name, list(card.forgotten)) == ("retrained", classes)
        for metric, gap in record["gap"].items():
            assert gap == record["test"][metric] - record["retrained"][metric]
        for classifier, stored in (
            *((unlearned, "test"), (original, "before")),
            (target, "retrained"),
        ):
            again = evaluate(classifier, test, classes)
            assert record[stored]["retained"] == pytest.approx(again.retained)
            assert record[stored]["forgotten"] == pytest.approx(again.forgotten)
    assert {t["learning_rate"] for t in found["validation_trials"]} == {0.1, 1.0}
    assert found["learning_rate"] in (0.1, 1.0)


@long
def test_a_retrained_network_is_that_of_a_run(finished, tmp_path):
    saved = ("--checkpoint", finished / "original.safetensors", "--forget", 3)
    flags = ("--recipe.epochs", 2, "--methods", "retrain", "--out", tmp_path / "x")
    assert main(["run", *map(str, (*saved, *flags))]) == 0
    ours = load_classifier(finished / f"forget-3{RETRAINED}.safetensors")[0]
    theirs = load_classifier(tmp_path / "x" / "retrained.safetensors")[0]
    images = load("digits", "test").images
    np.testing.assert_allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@long
def test_each_class_from_a_checkpoint_prints_a_table(finished, tmp_path, capsys):
    flags = ("--checkpoint", finished / "original.safetensors", "--out", tmp_path / "x")
    flags += ("--no-retrained",)
    method = ("--unsc.steps", "3", "--learning-rates", "--unsc.learning-rate", "1")
    assert cli(*flags, *method) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    rows = {row[0]: row[1:] for row in rows if row and re.match(r"\d$|mean$", row[0])}
    found = strict(tmp_path / "x" / "sweep.json")
    assert [int(name) for name in rows if name != "mean"] == list(range(10))
    for record in found["requests"]:
        shown = [float(x) for x in rows[str(record["forget"][0])]]
        wanted = [
            *(record[when]["retained"] for when in ("test", "before")),
            *(record[when]["forgotten"] for when in ("test", "before")),
            record["retained_logit_change"],
        ]
        assert shown == pytest.approx(wanted, abs=0.006)
    mean = np.mean([record["test"]["forgotten"] for record in found["requests"]])
    assert float(rows["mean"][2]) == pytest.approx(mean, abs=0.006)
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    assert "1 over 1,294 training images for statistics" in " ".join(printed.split())
    assert found["settings"]["options"] == ["width=4"]
    assert {path.suffix for path in (tmp_path / "x").iterdir()} == {
        ".json",
        ".png",
        ".pdf",
    }
    assert {record["retrained"] for record in found["requests"]} == {None}


@long
def test_an_interrupted_sweep_leaves_nothing(finished, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    flags = ("--checkpoint", finished / "original.safetensors", "--out", tmp_path / "x")
    monkeypatch.setattr(sweep, "sweep", interrupted)
    assert cli(*flags, "--learning-rates") == 130
    assert list(tmp_path.iterdir()) == []
    assert "interrupted. Nothing was written." in capsys.readouterr().err


@long
def test_a_sweep_is_replaced_only_when_told(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it trains"))
    assert cli("--out", finished) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert cli("--out", tmp_path, "--overwrite") == 2
    assert "is no sweep" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


@long
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--forget", "each", "3"), "--forget takes each by itself"),
        (("--forget", "1-2"), "asks for '1-2', and there is no such class"),
        (("--forget", "3", "12"), r"names class 12, which does not exist"),
        (("--forget", "0,1", "1,0"), "are the same classes"),
        (("--method", "retrain"), "--method must be one of 'covarnav'"),
        (("--how", "pmap"), "--how must be one of"),
        (("--unsc.learning-rate", "0.1"), "has no effect next to a grid"),
        (("--learning-rates", "-1"), "learning_rates must be positive"),
    ],
)
def test_refusals_come_before_training(flags, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it trains"))
    assert cli(*flags, "--out", tmp_path / "x") == 2
    assert re.search(sentence, " ".join(capsys.readouterr().err.split()))
    assert list(tmp_path.iterdir()) == []
