"""The command line on other data sets, networks and checkpoints than the default's."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from test_cli import assert_in_words, cli

from jaxunlearn import datasets, methods, models, training
from jaxunlearn.classifier.classifier import Preprocess
from jaxunlearn.datasets import preparation
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.models import torch_weights
from jaxunlearn.models.files import load_classifier

pytestmark = pytest.mark.long

WIDTH = ("--options", "width=2")
SHORT = ("--recipe.epochs", 1, "--methods", "unprojected")
SHORT += ("--learning-rates", "--unprojected.steps", 2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two dozen images of 8 x 8 of three classes, as an .npz file."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "three.npz"
    sizes = {"train": 48, "test": 12}
    arrays = {}
    for split, n in sizes.items():
        labels = np.arange(n) % 3
        noise = rng.integers(0, 60, (n, 8, 8, 3))
        arrays[f"{split}_images"] = (noise + 60 * labels[:, None, None, None]).astype(
            np.uint8
        )
        arrays[f"{split}_labels"] = labels
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def run_folder(images, tmp_path_factory):
    """A run on those images."""
    out = tmp_path_factory.mktemp("runs") / "npz"
    flags = ("--dataset", images, "--forget", 1, "--seed", 3, *WIDTH, *SHORT)
    assert cli("run", *flags, "--out", out) == 0
    return out


@pytest.mark.core
def test_a_run_takes_arrays_and_options_of_the_network(run_folder, images):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["samples"]["test"] == 12
    assert len(metrics["classifiers"]["original"]["test"]["per_class"]) == 3
    classifier, card = load_classifier(run_folder / "original.safetensors")
    assert (card.options, card.num_classes) == ({"width": 2}, 3)
    assert (card.dataset, card.split_seed) == (str(images), 3)
    train = datasets.load(str(images), "train", seed=3)
    pixels = train.images.astype(np.float64) / 255
    assert classifier.preprocess.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)))


def test_a_card_lies_beside_each_classifier(run_folder):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    for title, record in metrics["classifiers"].items():
        card = json.loads((run_folder / f"{title}.json").read_text())
        assert card["model"] == "smallcnn"
        assert card["options"] == {"width": 2}
        assert card["split_seed"] == 3
        assert card["forgotten"] == ([] if title == "original" else [1])
        assert set(card["versions"]) > {"jax", "flax", "python"}
        for split in ("train", "validation", "test"):
            assert card["accuracies"][split] == record[split]


@pytest.mark.core
def test_a_run_starts_from_a_saved_classifier(run_folder, tmp_path, monkeypatch):
    saved = run_folder / "original.safetensors"
    monkeypatch.setattr(training, "fit", pytest.fail)
    # Data set, network, options and validation samples are those of the checkpoint.
    flags = ("--checkpoint", saved, "--forget", 2, *SHORT[2:], "--seed", 8)
    out = tmp_path / "a"
    assert cli("run", *flags, "--out", out) == 0
    before, card = load_classifier(saved)
    after, after_card = load_classifier(out / "original.safetensors")
    assert after_card == card
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.array_equal(x, y)
    config = json.loads((out / "config.json").read_text())
    assert config["checkpoint"] == str(saved)
    assert (config["split_seed"], config["seed"]) == (3, 8)
    # And again from what it wrote.
    assert cli("run", "--config", out / "config.json", "--out", tmp_path / "b") == 0


def test_a_run_starts_from_pytorch_parameters(images, tmp_path):
    options = {"width": 4}
    model = models.create("resnet18", num_classes=3, **options)
    variables = model.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 3)))
    state_dict = torch_weights.to_torch(model, variables)
    save_file(state_dict, tmp_path / "torch.safetensors")
    flags = ("--checkpoint", tmp_path / "torch.safetensors", "--dataset", images)
    flags += ("--model", "resnet18", "--options", "width=4", "--forget", 1, *SHORT)
    flags += ("--mean", 0.4, 0.5, 0.6, "--std", 0.25)
    assert cli("run", *flags, "--out", tmp_path / "a") == 0
    classifier, card = load_classifier(tmp_path / "a" / "original.safetensors")
    assert (card.model, card.options) == ("resnet18", options)
    test = datasets.load(str(images), "test")
    preprocess = Preprocess((0.4, 0.5, 0.6), 0.25)
    wanted = model.apply(variables, preprocess(test.images))
    np.testing.assert_allclose(logits(classifier, test.images), wanted, atol=1e-5)


def test_image_folders_are_resized_and_stay_so(tmp_path, images):
    data = datasets.load(str(images), "test")
    for number, (image, label) in enumerate(
        zip(data.images.repeat(5, axis=0), data.labels.repeat(5), strict=True)
    ):
        folder = tmp_path / "photos" / f"class-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        side = 10 + number % 3
        Image.fromarray(image).resize((side, side)).save(folder / f"{number}.png")
    source = ("--dataset", tmp_path / "photos", "--size", 8, 8, *WIDTH)
    out = tmp_path / "a"
    assert cli("run", *source, "--forget", 0, *SHORT, "--out", out) == 0
    saved = out / "original.safetensors"
    assert load_classifier(saved)[1].size == (8, 8)
    assert cli("evaluate", "--checkpoint", saved, "--split", "train") == 0
    assert cli("run", "--checkpoint", saved, "--forget", 0, *SHORT, "--help") == 0


def test_evaluate_and_unlearn_find_the_data_again(run_folder, tmp_path, capsys):
    saved = run_folder / "original.safetensors"
    assert cli("evaluate", "--checkpoint", saved, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    metrics = json.loads((run_folder / "metrics.json").read_text())
    whole = metrics["classifiers"]["original"]["test"]
    assert found["per_class"] == whole["per_class"]
    flags = ("--method", "unprojected", "--forget", 0, *SHORT[4:])
    out = tmp_path / "a.safetensors"
    assert cli("unlearn", "--checkpoint", saved, "--out", out, *flags) == 0
    assert load_classifier(out)[1].forgotten == (0,)


def test_methods_augment_by_name(run_folder, tmp_path):
    saved = run_folder / "original.safetensors"
    flags = ("--checkpoint", saved, "--forget", 1, *SHORT)
    flags += ("--unprojected.learning-rate", 0.5)
    moved = {}
    for name in ("none", "crop-flip"):
        out = tmp_path / name
        augment = ("--unprojected.augment", name)
        assert cli("run", *flags, *augment, "--out", out) == 0
        classifier, _ = load_classifier(out / "unprojected.safetensors")
        moved[name] = np.concatenate(
            [np.ravel(leaf) for leaf in jax.tree.leaves(classifier.params)]
        )
    assert not np.array_equal(moved["none"], moved["crop-flip"])
    with pytest.raises(ValueError, match="augment must be one of 'none', 'crop-flip'"):
        methods.UNSC(augment="mixup")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--options", "depth=3"], "smallcnn has no option 'depth'; it has: width"),
        (
            ["--options", "width=wide"],
            "width of the model smallcnn must be of",
        ),
        (["--options", "width=0"], "width of the model smallcnn must be positive"),
        (["--options", "width"], "An option is NAME=VALUE"),
        (["--dataset", "none.npz"], "none.npz"),
        (["--dataset", "no/folder"], "no/folder"),
        (["--checkpoint", "none.pt"], "There is no file none.pt"),
        (["--checkpoint", "text.safetensors"], "is no whole safetensors file"),
        (["--checkpoint", "text.pt"], "PyTorch weights .* this is a SmallCNN"),
        (["--checkpoint", "text.pt", "--model", "allcnn"], "text.pt"),
        (["--split-seed", "-1"], "--split-seed must be 0 or more"),
        (["--mean", "0.5"], "--mean and --std go together"),
        (["--mean", "0.5", "--std", "0"], "std must be positive"),
        (["--size", "0", "8"], "size must be"),
        (["--model", "alexnet"], "AlexNet needs images of 19 x 19 pixels or more"),
    ],
)
def test_bad_sources_are_refused_in_a_sentence(
    tmp_path, monkeypatch, capsys, flags, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "fit", pytest.fail)
    for name in ("text.safetensors", "text.pt"):
        Path(name).write_text("not parameters")
    assert cli("run", "--methods", "unprojected", *flags, "--out", "a") == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert_in_words(sentence, shown.err)
    assert not list(Path().glob("a*"))


def test_pixels_are_standardised_as_a_checkpoint_does(images, tmp_path, capsys):
    flags = ("--dataset", images, *WIDTH, "--recipe.epochs", 1)
    flags += ("--mean", 0.25, "--std", 0.5, "--out", tmp_path / "training")
    assert cli("train", *flags) == 0
    saved = tmp_path / "training" / "model.safetensors"
    flags = ("--checkpoint", saved, "--forget", 1, *SHORT, "--methods", "retrain")
    assert cli("run", *flags, "--out", tmp_path / "a") == 0
    for name in ("original", "retrained"):
        classifier, _ = load_classifier(tmp_path / "a" / f"{name}.safetensors")
        assert classifier.preprocess == Preprocess(0.25, 0.5)
    other = ("--mean", 0.5, "--std", 0.5, "--out", tmp_path / "b")
    assert cli("run", *flags, *other) == 2
    assert_in_words("a classifier of --mean and --std", capsys.readouterr().err)


def test_what_prepare_cannot_get_is_said_in_a_sentence(tmp_path, capsys, monkeypatch):
    class Builder:
        name, data_dir = "shapes", str(tmp_path / "shapes" / "1.0.0")

        def download_and_prepare(self, **_):
            msg = "the server does not answer"
            raise OSError(msg)

    monkeypatch.setattr(preparation, "_NEEDED", ())
    monkeypatch.setattr(preparation, "_builder", lambda *_: Builder())
    assert cli("prepare", "shapes", "--data-dir", tmp_path) == 2
    assert_in_words("the server does not answer", capsys.readouterr().err)


def test_checkpoints_of_something_else_are_refused(
    run_folder, images, tmp_path, capsys
):
    out = ("--out", tmp_path / "a", *SHORT, "--forget", 0)
    saved = run_folder / "original.safetensors"
    for flags, sentence in (
        (("--model", "lenet5", "--options"), "of --model smallcnn, and the run"),
        (("--options", "width=4"), "of --options"),
        (("--split-seed", 4), "of --split-seed 3, and the run is to have 4"),
        (("--dataset", "digits"), "of image shape"),
    ):
        assert cli("run", "--checkpoint", saved, *flags, *out) == 2
        assert_in_words(sentence, capsys.readouterr().err)
    forgotten = run_folder / "unprojected.safetensors"
    assert cli("run", "--checkpoint", forgotten, *out) == 2
    assert_in_words(r"has forgotten \[1\]", capsys.readouterr().err)


def test_a_set_that_is_not_there_is_named_with_the_command_that_prepares_it(
    tmp_path, capsys
):
    flags = ("--dataset", "cifar10", "--data-dir", tmp_path)
    assert cli("run", *flags, "--out", tmp_path / "a") == 2
    command = f"jaxunlearn prepare cifar10 --data-dir {tmp_path}"
    error = "".join(capsys.readouterr().err.split())
    assert "".join(command.split()) in error
