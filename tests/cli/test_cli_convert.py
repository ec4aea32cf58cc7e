"""Commands on PyTorch's weights, the way there and back, and files that are no good."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_cli import assert_in_words, cli

from jaxunlearn import datasets, models
from jaxunlearn.classifier.classifier import freeze
from jaxunlearn.cli.saved import load_saved
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.models import torch_weights
from jaxunlearn.models.files import Card, load_classifier, save_classifier

pytestmark = pytest.mark.long

MODEL = ("--model", "allcnn")
DIGITS = ("--dataset", "digits", "--grey-to-rgb")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state_dict of a narrow network for images of three channels."""
    model = models.create("allcnn", num_classes=10, width=0.1)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    path = tmp_path_factory.mktemp("torch") / "sd.ckpt"
    save_file(torch_weights.to_torch(model, variables), path)
    return path


@pytest.fixture(scope="module")
def converted(weights):
    """The same as a classifier's file."""
    out = weights.with_name("a.safetensors")
    flags = ("--checkpoint", weights, "--out", out)
    assert cli("convert", *flags, *MODEL, *DIGITS) == 0
    return out


def test_weights_become_a_file_that_says_all_and_back(weights, converted, capsys):
    classifier, card = load_classifier(converted)
    assert (card.model, card.dataset) == ("allcnn", "digits")
    assert card.options["width"] == 0.099
    assert tuple(card.image_shape) == (8, 8, 3)
    assert classifier.preprocess == datasets.preprocess("digits")
    back = converted.with_name("back.safetensors")
    assert cli("convert", "--checkpoint", converted, "--out", back) == 0
    assert_in_words("does not say that pixels in", capsys.readouterr().out)
    assert back.read_bytes() == weights.read_bytes()
    assert cli("convert", "--checkpoint", converted, "--out", back) == 2
    assert_in_words("is there: choose another file", capsys.readouterr().err)


def test_evaluate_reads_weights_as_it_reads_the_file(weights, converted, capsys):
    assert cli("evaluate", "--checkpoint", weights, *MODEL, *DIGITS, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    test = datasets.load("digits", "test")
    classifier = load_saved(converted, "--checkpoint").classifier
    images = np.repeat(test.images, 3, axis=-1)
    wanted = evaluate(classifier, type(test)(images, test.labels), ())
    np.testing.assert_allclose(found["per_class"], wanted.per_class)


def test_unlearn_and_invert_take_weights(weights, tmp_path):
    flags = ("--checkpoint", weights, *MODEL, *DIGITS)
    few = ("--learning-rates", "--unsc.steps", 2, "--method", "unsc")
    out = tmp_path / "b.safetensors"
    assert cli("unlearn", *flags, "--forget", 3, "--out", out, *few) == 0
    card = load_classifier(out)[1]
    assert (card.dataset, card.forgotten) == ("digits", (3,))
    few = ("--steps", 3, "--images-per-class", 2, "--classes", "1,2")
    assert cli("invert", *flags, *few, "--out", tmp_path / "images") == 0
    record = json.loads((tmp_path / "images" / "inversion.json").read_text())
    assert record["settings"]["classes"] == [1, 2]
    assert record["checkpoint"]["card"]["model"] == "allcnn"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((), "jaxunlearn did not write .* of which --model, and give --dataset, or"),
        (MODEL, "of which --model, and give --dataset"),
        ((*MODEL, "--dataset", "digits"), "images of 3 .*--grey-to-rgb makes them"),
        ((*MODEL, *DIGITS, "--mean", 0.5), "--mean and --std go together"),
        (("--model", "resnet18", *DIGITS), "tensors are not those of"),
        ((*MODEL, "--image-shape", 8, 8, 0), "must be"),
    ],
)
def test_weights_that_cannot_be_read_are_refused(
    weights, tmp_path, capsys, flags, sentence
):
    out = tmp_path / "a.safetensors"
    assert cli("convert", "--checkpoint", weights, *flags, "--out", out) == 2
    assert_in_words(sentence, capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("evaluate",), r"\[8, 8, 3\] .* \[8, 8, 1\].*--grey-to-rgb gives them three"),
        (("evaluate", *MODEL), "says itself what it holds: leave out --model"),
        (("run", "--out", "a"), "--grey-to-rgb gives the images three channels"),
        (("convert", "--out", "a.bin"), "--out must end in .pt or .pth or .safetens"),
        (("convert", "--out", "a.safetensors", "--naming", "x"), "naming"),
    ],
)
def test_what_does_not_fit_a_file_is_refused(
    converted, tmp_path, monkeypatch, capsys, flags, sentence
):
    monkeypatch.chdir(tmp_path)
    command, *others = flags
    assert cli(command, "--checkpoint", converted, *others) == 2
    assert_in_words(sentence, capsys.readouterr().err)
    assert not any(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_refused_everywhere(
    converted, tmp_path, monkeypatch, capsys
):
    classifier, card = load_classifier(converted)
    params = jax.tree.map(lambda x: x, classifier.params)
    params["conv0"]["kernel"] = params["conv0"]["kernel"].at[0, 0, 0, 0].set(np.nan)
    path = tmp_path / "nan.safetensors"
    save_classifier(path, classifier.replace(params=params), card)
    monkeypatch.chdir(tmp_path)
    for flags in (
        ("evaluate", *DIGITS),
        ("unlearn", *DIGITS, "--forget", 3, "--out", "b.safetensors"),
        ("invert",),
        ("convert", "--out", "b.pt"),
        ("run", *DIGITS, "--out", "b"),
        ("sweep", *DIGITS, "--out", "b"),
    ):
        assert cli(flags[0], "--checkpoint", path, *flags[1:]) == 2
        words = "nan.safetensors holds numbers that are not finite, in conv0/kernel"
        assert_in_words(words, capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["nan.safetensors"]


@pytest.mark.parametrize("command", ["train", "run", "sweep"])
def test_images_without_a_deviation_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, command
):
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = np.full((60, 8, 8, 1), 7, np.uint8)
        arrays[f"{split}_labels"] = np.arange(60) % 3
    np.savez(tmp_path / "flat.npz", **arrays)
    monkeypatch.setattr("jaxunlearn.training.fit", pytest.fail)
    flags = ("--dataset", tmp_path / "flat.npz", "--out", tmp_path / "a")
    forget = () if command == "train" else ("--forget", 1)
    assert cli(command, *flags, *forget) == 2
    assert_in_words("is 7 everywhere.*give --mean and --std", capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["flat.npz"]


def test_a_term_without_anything_to_compare_with_is_refused(tmp_path, capsys):
    for name in ("moment", "competition"):
        flags = (f"--covarnav.prior.{name}", 0.5, "--out", tmp_path / "a")
        assert cli("run", *flags) == 2
        words = f"prior.{name} compares images with what this method does not have"
        assert_in_words(words, capsys.readouterr().err)
    assert not any(tmp_path.iterdir())


def named(tmp_path):
    """A tiny classifier whose classes have names, one of them that of a number."""
    model = models.create("smallcnn", num_classes=3, width=2)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    card = Card(
        model="smallcnn",
        num_classes=3,
        options={"width": 2},
        image_shape=(8, 8, 1),
        class_names=("ant", "bee, queen", "wasp"),
    )
    path = tmp_path / "named.safetensors"
    save_classifier(path, freeze(model, variables), card)
    return path


def test_classes_are_inverted_by_name_and_named_wherever_they_are_shown(
    tmp_path, monkeypatch, capsys
):
    titles = []
    monkeypatch.setattr(
        "jaxunlearn.cli.images.plot_sheet",
        lambda path, images, captions, *, title, marked: titles.append(title),
    )
    path, out = named(tmp_path), tmp_path / "out"
    flags = ("--checkpoint", path, "--steps", 2, "--images-per-class", 2)
    classes = ("--classes", "wasp,0", "bee, queen")
    assert cli("invert", *flags, *classes, "--out", out) == 0
    assert titles[1].startswith("class 1 (bee, queen): ")
    shown = capsys.readouterr().out
    assert_in_words("0: ant .* 1: bee, queen .* 2: wasp", shown)
    record = json.loads((out / "inversion.json").read_text())
    assert record["settings"]["classes"] == [0, 1, 2]
    assert record["class_names"] == ["ant", "bee, queen", "wasp"]
    assert cli("invert", *flags, "--classes", "fly", "--out", tmp_path / "b") == 2
    assert_in_words("--classes .*fly", capsys.readouterr().err)
