"""`jaxunlearn ledger`: requests one after another, on the command line."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from killing import environment, kill_at
from test_cli import cli

from jaxunlearn import datasets, models
from jaxunlearn.classifier.classifier import freeze
from jaxunlearn.cli import ledger as command
from jaxunlearn.models.files import Card, load_classifier, save_classifier
from jaxunlearn.models.tensors import read_tensors

FEW = ("--unsc.steps", 3, "--unsc.learning-rate", 0.1)


def checkpoint(path, **fields):
    """Of a tiny network, not trained."""
    options = {"width": 2}
    card = Card(
        model="smallcnn",
        num_classes=10,
        options=options,
        image_shape=(8, 8, 1),
        dataset="digits",
        **fields,
    )
    model = models.create("smallcnn", num_classes=10, **options)
    variables = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    classifier = freeze(model, variables, preprocess=datasets.preprocess("digits"))
    save_classifier(path, classifier, card)
    return path


@pytest.mark.long
def test_requests_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original = checkpoint(tmp_path / "a.safetensors")
    assert cli("ledger", "init", "--checkpoint", original) == 0
    assert "Moments of 10 classes" in capsys.readouterr().out
    assert cli("ledger", "init", "--checkpoint", original) == 2
    assert "There is a ledger in runs/ledger already" in capsys.readouterr().err

    assert cli("ledger", "forget", "--forget", 3, "--no-revival", *FEW) == 0
    said = capsys.readouterr().out
    assert "drift accumulated: at most" in said
    assert "relearned" not in said
    assert cli("ledger", "forget", "--forget", 5, "--method", "mask-head") == 0
    said = capsys.readouterr().out
    assert "bias moved" in said.replace("\n", " ")
    assert all(f"class {c}: accuracy" in said for c in (3, 5))

    assert cli("ledger", "replay") == 0
    assert "2 requests made again: bit for bit" in capsys.readouterr().out
    assert cli("ledger", "log", "--json") == 0
    log = json.loads(capsys.readouterr().out)
    kinds = [entry["kind"] for entry in log]
    assert kinds == ["open", "forget", "forget", "revival", "replay"]
    assert log[1]["method"]["settings"]["steps"] == 3
    assert log[1]["samples_read"]["retain"] == 0
    assert set(log[3]["revival"]) == {"3", "5"}
    # The current parameters are a checkpoint as any other.
    current = Path("runs/ledger/parameters-2.safetensors")
    assert load_classifier(current)[1].forgotten == (3, 5)
    assert cli("evaluate", "--checkpoint", current) == 0
    assert "classes: 3, 5" in capsys.readouterr().out

    assert cli("ledger", "undo") == 0
    assert "to forget 5 is undone" in capsys.readouterr().out
    assert cli("ledger", "undo") == 0
    first = read_tensors(original)[0]
    now = read_tensors(Path("runs/ledger/parameters-0.safetensors"))[0]
    assert all(now[name].tobytes() == first[name].tobytes() for name in first)
    assert cli("ledger", "undo") == 2
    assert "nothing to undo" in capsys.readouterr().err

    assert cli("ledger", "forget", "--forget", 7, "--no-revival", *FEW) == 0
    assert cli("ledger", "commit") == 0
    assert "Classes 7 are forgotten for good" in capsys.readouterr().out
    assert cli("ledger", "log") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("undo 2", "commit", "unsc", "since the base"))
    files = sorted(path.name for path in Path("runs/ledger").iterdir())
    assert len(files) == 4
    assert not any(name in files for name in ("parameters-0.safetensors",))


@pytest.mark.long
def test_what_a_checkpoint_has_forgotten_is_not_protected(tmp_path, capsys):
    path = checkpoint(tmp_path / "a.safetensors", forgotten=(2, 4))
    folder = tmp_path / "ledger"
    assert cli("ledger", "init", "--checkpoint", path, "--folder", folder) == 0
    assert "Moments of 8 classes" in capsys.readouterr().out
    given = ("--folder", folder, "--forget", 2)
    assert cli("ledger", "forget", *given) == 2
    assert "class 2, which is forgotten already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "needs --action"),
        (["begin"], "--action must be one of 'init'"),
        (["init"], "needs --checkpoint FILE"),
        (["undo"], "There is no ledger in runs/ledger: jaxunlearn ledger init"),
        (["log", "--seed", -1], "--seed must be"),
        (["forget", "--method", "retrain"], "--method must be"),
    ],
)
def test_what_cannot_be_is_refused(flags, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli("ledger", *flags) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["init", "--checkpoint", "a"], "There is a ledger in runs/ledger already"),
        (["undo", "--checkpoint", "a"], "--checkpoint is for init"),
        (["forget"], "--forget names no class"),
        (["forget", "--forget", 3, "--method", "fine-tune"], "FineTune as it is set"),
    ],
)
def test_a_request_is_refused_before_the_ledger_is_read(
    flags, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("runs/ledger").mkdir(parents=True)
    Path("runs/ledger/ledger.json").write_text("{}")
    monkeypatch.setattr(command.Ledger, "open", lambda *_: pytest.fail("read"))
    assert cli("ledger", *flags) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.long
def test_a_killed_request_leaves_the_ledger_as_before(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original = checkpoint(tmp_path / "a.safetensors")
    assert cli("ledger", "init", "--checkpoint", original) == 0
    folder, lock = Path("runs/ledger"), Path("runs/.ledger.lock")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flags = ["ledger", "forget", "--forget", "3", "--no-revival", *map(str, FEW)]
    program = [sys.executable, "-m", "jaxunlearn", *flags]
    # It is held from before the first step until the request is written down.
    kill_at(program, folder, environment(tmp_path / "xla"), lock.exists)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # What the dead process held is free.
    assert cli(*flags) == 0
    capsys.readouterr()
    assert cli("ledger", "log", "--json") == 0
    kinds = [entry["kind"] for entry in json.loads(capsys.readouterr().out)]
    assert kinds == ["open", "forget"]
