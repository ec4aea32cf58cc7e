"""`jaxunlearn audit` on the files of two runs."""

import json

import outputs
import pytest

from jaxunlearn.cli import main

pytestmark = pytest.mark.long

SMALL = ["--options", "width=8", "--recipe.epochs", "6"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    for seed in "01":
        run = ["run", *SMALL, "--methods", "retrain", "mask-head", "--seed", seed]
        assert main([*run, "--out", str(place / seed)]) == 0
    return place


def arguments(runs, name, *retrained):
    files = [str(runs / seed / "retrained.safetensors") for seed in retrained]
    given = ["audit", "--checkpoint", str(runs / "0" / f"{name}.safetensors")]
    given += ["--original", str(runs / "0" / "original.safetensors")]
    return [*given, "--retrained", *files, "--which", "accuracy", "prototype"]


def test_the_verdict_comes_first_and_the_rows_are_written(runs, capsys):
    out = runs / "audit.json"
    given = arguments(runs, "mask-head", "0", "1")
    assert main([*given, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    outputs.check_keys(record, "audit.json", complete=["audit.json"])
    assert not outputs.measured(row["name"] for row in record["rows"])
    assert printed.startswith(record["verdict"] + "\n")
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["accuracy/forgotten"]["unlearned"] == 0
    assert len(rows["prototype"]["retrained"]) == 2
    assert main([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == record["verdict"]


def test_a_retrained_model_is_its_own_measure(runs, capsys):
    assert main(arguments(runs, "retrained", "0", "1")) == 0
    assert capsys.readouterr().out.startswith("within the noise of retraining\n")


@pytest.mark.parametrize(
    ("name", "retrained", "sentence"),
    [
        ("original", "01", "says that it has forgotten no class"),
        ("mask-head", "2", "There is no file"),
    ],
)
def test_what_cannot_be_audited_is_refused(runs, capsys, name, retrained, sentence):
    assert main(arguments(runs, name, *retrained)) == 2
    assert sentence in capsys.readouterr().err


def test_models_that_saw_the_class_are_no_retrained_ones(runs, capsys):
    given = arguments(runs, "mask-head")
    given[given.index("--retrained") + 1 : given.index("--retrained") + 1] = [
        str(runs / "0" / "original.safetensors")
    ]
    assert main(given) == 2
    assert "was trained with class 3" in capsys.readouterr().err


def test_a_run_audits_by_itself_and_says_the_verdict(runs, capsys):
    metrics = json.loads((runs / "0" / "metrics.json").read_text())
    assert set(metrics["audits"]) == {"mask-head"}
    outputs.check_keys(metrics, "metrics.json", complete=["audit.json"])
    rows = {row["name"]: row for row in metrics["audits"]["mask-head"]["rows"]}
    # Two retrained models, of different seeds.
    assert len(set(rows["accuracy/retained"]["retrained"])) == 2
    assert (runs / "0" / "retrained-2.safetensors").is_file()
    run = ["run", *SMALL, "--methods", "retrain", "mask-head", "--overwrite"]
    assert main([*run, "--out", str(runs / "again")]) == 0
    printed = capsys.readouterr().out
    assert metrics["audits"]["mask-head"]["verdict"].split()[0] in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    assert main([*run, "--no-audit", "--out", str(runs / "none")]) == 0
    assert json.loads((runs / "none" / "metrics.json").read_text())["audits"] is None


def test_files_beside_it_are_taken(runs, capsys):
    model = runs / "0" / "mask-head.safetensors"
    assert main(["audit", "--checkpoint", str(model), "--which", "accuracy"]) == 0
    assert " to " in capsys.readouterr().out  # a range: two retrained models
    alone = runs / "alone" / "model.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(model.read_bytes())
    assert main(["audit", "--checkpoint", str(alone)]) == 2
    assert "no retrained*.safetensors beside" in capsys.readouterr().err


def test_an_unknown_audit_is_named(runs, capsys):
    assert main([*arguments(runs, "mask-head", "0"), "prob"]) == 2
    assert "each one of 'accuracy'" in capsys.readouterr().err
