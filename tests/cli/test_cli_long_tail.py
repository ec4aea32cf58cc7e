"""`--imbalance`: training on a long tail, in settings, cards, caches and folders."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn import cli, datasets, models
from jaxunlearn.classifier.classifier import Preprocess, freeze
from jaxunlearn.cli import cells
from jaxunlearn.cli.compare import Compare
from jaxunlearn.cli.folder import OutputFolder
from jaxunlearn.cli.run import RUN, Run
from jaxunlearn.cli.samples import Forgotten
from jaxunlearn.cli.sources import load_original, with_checkpoint
from jaxunlearn.cli.train import TRAINING, Train
from jaxunlearn.cli.unlearn import Evaluate
from jaxunlearn.cli.variants import variants
from jaxunlearn.models.files import Card, save_with_card
from jaxunlearn.serialization import to_dict, write_json
from jaxunlearn.tasks import long_tailed

CARD = Card(
    model="smallcnn",
    num_classes=10,
    options={"width": 2},
    image_shape=(8, 8, 1),
    dataset="digits",
    split_seed=3,
    imbalance=10.0,
)
TAIL = long_tailed(datasets.load("digits", "train", seed=3), 10, seed=3)


def test_the_training_samples_alone_are_a_long_tail():
    settings = Run(seed=3, imbalance=10.0)
    settings.check()
    splits = settings.load_splits()
    np.testing.assert_array_equal(splits["train"].images, TAIL.images)
    np.testing.assert_array_equal(splits["train"].labels, TAIL.labels)
    counts = np.bincount(TAIL.labels)
    assert (np.diff(counts) <= 0).all()
    assert counts[0] // counts[9] in (10, 11)
    for split in ("validation", "test"):
        whole = datasets.load("digits", split, seed=3)
        np.testing.assert_array_equal(splits[split].images, whole.images)
    plain = Run(seed=3).load("train")
    assert len(plain) == len(datasets.load("digits", "train", seed=3))


@pytest.mark.parametrize("value", ["0.5", "nan", "inf"])
def test_what_is_no_imbalance_is_refused(value, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--imbalance", value]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--imbalance must be finite and at least 1" in said
    assert f"the head's samples over the tail's; it is {value}" in said


def test_a_card_says_which_samples_it_was_trained_on():
    asked = Evaluate(checkpoint=Path("a.safetensors"))
    train, validation = asked.load(CARD, "train", "validation")
    np.testing.assert_array_equal(train.images, TAIL.images)
    whole = datasets.load("digits", "validation", seed=3)
    np.testing.assert_array_equal(validation.images, whole.images)
    (every,) = asked.load(dataclasses.replace(CARD, imbalance=None), "train")
    assert len(every) > len(train)


@pytest.fixture
def checkpoint(tmp_path):
    model = models.create("smallcnn", num_classes=10, width=2)
    variables = model.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1)))
    path = tmp_path / "a.safetensors"
    original = freeze(model, variables, preprocess=Preprocess((0.5,), (0.5,)))
    save_with_card(path, original, CARD, {})
    return path


@pytest.mark.long
def test_a_run_from_a_checkpoint_takes_its_samples(checkpoint, capsys):
    settings = with_checkpoint(Run(), checkpoint)
    assert (settings.imbalance, settings.split_seed) == (10.0, 3)
    load_original(settings, checkpoint, (8, 8, 1))
    other = dataclasses.replace(settings, imbalance=50.0)
    with pytest.raises(ValueError, match="of --imbalance 10.0, and the run .* 50.0"):
        load_original(other, checkpoint, (8, 8, 1))

    flags = ["--checkpoint", str(checkpoint), "--dataset", "digits", "--json"]
    assert cli.main(["plan", *flags, "--method", "unsc", "--forget", "9"]) == 0
    planned = json.loads(capsys.readouterr().out)
    (taken,) = (s["runs"] for s in planned["stages"] if s["name"] == "statistics")
    counts = np.bincount(long_tailed(datasets.load("digits", "train"), 10).labels)
    assert taken < sum(counts[:9]) / 20  # of batches, far fewer than of all digits


# What was made before there was the flag.


def configurations(settings, monkeypatch):
    """What decides about an original and about what a method makes of it."""
    kept = lambda self, about, title, make: cells.Cell("", about)  # noqa: E731
    monkeypatch.setattr(cells.Cells, "_made", kept)
    splits = {"train": settings.load("train")}
    made = cells.Cells(settings, splits, cells.Bars())
    (row,) = variants(settings, settings.methods)
    before = made.original(0)
    after = made.unlearned(row, before, Forgotten((3,)), seed=0)
    return to_dict(before.record), to_dict(after.record)


def test_a_cache_from_before_stays_good(monkeypatch):
    methods = ("unsc:subspace=pooled",)
    trained, unlearned = configurations(Compare(methods=methods), monkeypatch)
    assert "imbalance" not in trained
    assert "normalise" not in unlearned["settings"]

    methods = ("unsc:subspace=pooled,normalise=true",)
    settings = Compare(imbalance=10.0, methods=methods)
    other, weighed = configurations(settings, monkeypatch)
    assert other["imbalance"] == 10.0
    assert other["data"] != trained["data"]
    assert weighed["settings"]["normalise"] is True
    assert other.keys() - trained.keys() == {"imbalance"}
    assert weighed["settings"].keys() - unlearned["settings"].keys() == {"normalise"}


@pytest.mark.parametrize(
    ("kind", "settings"), [(RUN, Run(methods=("unsc",))), (TRAINING, Train())]
)
def test_a_folder_from_before_is_taken_up(kind, settings, tmp_path):
    place = tmp_path / "out"
    work = place.with_name("out.partial") if kind.beside else place
    work.mkdir()
    now = to_dict(settings.to_dict() if kind is RUN else settings)
    before = {name: value for name, value in now.items() if name != "imbalance"}
    if kind is RUN:
        del before["unsc"]["normalise"]
    write_json(work / kind.settings[-1], before)
    assert OutputFolder(place, now, kind=kind, resume=True).resumed
    with pytest.raises(ValueError, match=r"differ in imbalance"):
        OutputFolder(place, now | {"imbalance": 10.0}, kind=kind, resume=True)


@pytest.mark.long
def test_what_a_training_leaves_says_its_imbalance(tmp_path, capsys):
    out = tmp_path / "tail"
    flags = ["--options", "width=2", "--recipe.epochs", "1", "--imbalance", "10"]
    assert cli.main(["train", *flags, "--seed", "3", "--out", str(out)]) == 0
    card = json.loads((out / "model.json").read_text())
    assert card["imbalance"] == 10.0
    assert card["samples"]["train"] == len(TAIL)
    capsys.readouterr()
    # What was left out for it is no training sample for later commands either.
    checkpoint = str(out / "model.safetensors")
    given = ["--checkpoint", checkpoint, "--split", "train", "--json"]
    assert cli.main(["evaluate", *given]) == 0
    found = np.array(json.loads(capsys.readouterr().out)["confusion"]).sum(axis=1)
    assert found.tolist() == np.bincount(TAIL.labels).tolist()
