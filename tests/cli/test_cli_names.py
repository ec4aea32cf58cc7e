"""Classes that have names: asked for by them, and shown by them everywhere."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxunlearn.cli import main
from jaxunlearn.cli.classes import forget_numbers
from jaxunlearn.cli.plots import plot_accuracies
from jaxunlearn.cli.run import Run
from jaxunlearn.models.files import load_classifier

NAMES = ["ant", "bee", "crane fly, large", "wasp"]
SHORT = ("--options", "width=4", "--recipe.epochs", "1", "--learning-rates")


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    """A folder of images for each class."""
    place, draw = tmp_path_factory.mktemp("data") / "insects", np.random.default_rng(0)
    for name in NAMES:
        (place / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(place / name / f"{i:02}.png")
    return place


def cli(*flags):
    return main([str(flag) for flag in flags])


@pytest.fixture(scope="module")
def folder(insects, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    flags = ("--forget", "bee", "--methods", "unprojected", "--out", out)
    steps = ("--unprojected.steps", "2")
    assert cli("run", "--dataset", insects, *flags, *SHORT, *steps) == 0
    return out


@pytest.mark.long
def test_a_run_shows_and_keeps_the_names(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["forget"] == [1]
    record = json.loads((folder / "metrics.json").read_text())["classifiers"]
    assert record["unprojected"]["test"]["class_names"] == NAMES
    assert load_classifier(folder / "original.safetensors")[1].class_names == (*NAMES,)


@pytest.mark.long
def test_evaluate_and_unlearn_take_and_show_names(folder, tmp_path, capsys):
    saved = ("--checkpoint", folder / "original.safetensors")
    assert cli("evaluate", *saved, "--forget", "wasp", "crane fly, large") == 0
    shown = capsys.readouterr().out
    assert "classes: 3: wasp, 2: crane fly, large" in shown
    assert "\n0: ant" in shown
    assert cli("evaluate", *saved, "--forget", "wasps") == 2
    assert "Is 'wasp' meant?" in capsys.readouterr().err
    assert cli("evaluate", *saved, "--forget", "bee", "--json") == 0
    assert json.loads(capsys.readouterr().out)["class_names"] == NAMES
    out = tmp_path / "b.safetensors"
    flags = ("--forget", "0,bee", "--method", "unprojected", "--unprojected.steps", 2)
    assert cli("unlearn", *saved, *flags, "--out", out, "--learning-rates") == 0
    assert "classes: 0: ant, 1: bee" in capsys.readouterr().out
    card = load_classifier(out)[1]
    assert card.forgotten == (0, 1)
    assert card.class_names == (*NAMES,)


@pytest.mark.long
def test_a_sweep_shows_names(folder, tmp_path, capsys):
    saved = ("--checkpoint", folder / "original.safetensors", "--learning-rates")
    flags = ("--forget", "bee", "wasp,ant", "--method", "unprojected")
    steps = ("--unprojected.steps", 2, "--out", tmp_path / "s")
    assert cli("sweep", *saved, *flags, *steps) == 0
    rows = capsys.readouterr().out
    assert re.search(r"\n *1: bee +\d", rows)
    # On one line or two.
    assert re.search(r"\n *3: wasp, 0:( ant +\d| +\d.*\n *ant)", rows)
    requests = json.loads((tmp_path / "s" / "sweep.json").read_text())["requests"]
    assert [request["forget"] for request in requests] == [[1], [3, 0]]


@pytest.mark.long
def test_train_leaves_out_a_class_by_name(insects, tmp_path):
    flags = ("--forget", "bee", "--out", tmp_path / "t", *SHORT[:-1])
    assert cli("train", "--dataset", insects, *flags) == 0
    card = load_classifier(tmp_path / "t" / "model.safetensors")[1]
    assert card.forgotten == (1,)


@pytest.mark.long
def test_data_whose_classes_are_in_another_order_are_refused(
    folder, insects, tmp_path, capsys
):
    other = tmp_path / "other"
    for name in ("ant", "bug", "crane fly, large", "wasp"):
        (other / name).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (8, 8)).save(other / name / f"{i}.png")
    saved = ("--checkpoint", folder / "original.safetensors")
    assert cli("evaluate", *saved, "--dataset", other) == 2
    assert "is 'bee', and that of the data set" in capsys.readouterr().err
    assert cli("run", *saved, "--dataset", other, "--out", tmp_path / "r") == 2
    assert "class names" in capsys.readouterr().err


def test_plan_takes_names(insects, capsys):
    flags = ("--method", "unprojected", "--options", "width=4")
    assert cli("plan", "--dataset", insects, "--forget", "wasp", *flags) == 0
    assert cli("plan", "--dataset", insects, "--forget", "fly", *flags) == 2
    assert "there is no such class" in capsys.readouterr().err


def test_commas_and_blanks_part_classes_alike():
    for words in (["3,5"], ["3", "5"], ["3, 5"], ["3,", "5"], [3, 5]):
        assert forget_numbers(words, None, 10) == (3, 5)
    assert forget_numbers(["bee,ant"], NAMES, 4) == (1, 0)
    assert forget_numbers(["crane fly, large"], NAMES, 4) == (2,)
    assert forget_numbers(["name:20"], ["10", "20"], 2) == (1,)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["3.5"], "no such class"),
        ([str(2**70)], "--forget"),
        (["-1"], "class -1, which does not exist"),
        (["3", "3"], "twice"),
        (["true"], "no such class"),
        ([""], "--forget names no class"),
        ([","], "--forget names no class"),
        ([str(c) for c in range(10)], "names all 10 classes"),
    ],
)
def test_what_is_no_class_is_refused(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        forget_numbers(words, None, 10)


def test_a_number_with_two_readings_is_refused():
    with pytest.raises(ValueError, match=r"two readings.*number:1.*name:1"):
        forget_numbers(["1"], ["1", "2", "3"], 3)


def test_names_stand_below_the_bars(tmp_path):
    heights, bars = [], []
    for names in (None, ["ant", "bee", "a very long name $"], [c * 90 for c in "abc"]):
        plot_accuracies(tmp_path / "a.png", {"x": [50.0] * 3}, [1], names)
        with Image.open(tmp_path / "a.png") as image:
            heights.append(image.height)
            bars.append((np.asarray(image.convert("L")) < 128).sum())
    assert heights[0] < heights[1] < heights[2] < 2 * heights[0]
    assert min(bars) > 0.8 * bars[0]


@pytest.fixture
def twelve(tmp_path):
    """Images of twelve channels."""
    draw = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 60), ("test", 20)):
        arrays[f"x_{split}"] = draw.integers(0, 255, (n, 8, 8, 12), np.uint8)
        arrays[f"y_{split}"] = np.arange(n) % 3
    np.savez(tmp_path / "twelve.npz", **arrays)
    return tmp_path / "twelve.npz"


def test_an_unusual_number_of_channels_is_refused_without_its_flag(twelve):
    with pytest.raises(ValueError, match="channels=12 if they are"):
        Run(dataset=str(twelve)).load("train")
    assert Run(dataset=str(twelve), channels=12).load("train").images.shape[-1] == 12
    with pytest.raises(ValueError, match="with 5 channels"):
        Run(dataset=str(twelve), channels=5).load("train")


@pytest.mark.long
def test_an_unusual_number_of_channels_is_given_by_a_flag(twelve, tmp_path, capsys):
    flags = ("--dataset", twelve, "--out", tmp_path / "t", *SHORT[:-1])
    assert cli("train", *flags) == 2
    assert "channels=12 if they are" in capsys.readouterr().err
    assert cli("train", *flags, "--channels", 12) == 0
    saved = ("--checkpoint", tmp_path / "t" / "model.safetensors")
    assert cli("evaluate", *saved) == 0
    flags = ("--learning-rates", "--method", "unprojected", "--unprojected.steps", 2)
    out = tmp_path / "b.safetensors"
    assert cli("unlearn", *saved, "--forget", 1, "--out", out, *flags) == 0
