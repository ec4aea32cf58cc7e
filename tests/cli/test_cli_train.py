"""`jaxunlearn train`: what it writes, what it refuses, and how it goes on."""

import dataclasses
import json
import random
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import outputs
import pytest
from killing import environment, killed_until_done, read_metrics
from test_cli import assert_in_words, cli

from jaxunlearn import datasets, models, training
from jaxunlearn.cli.settings import keys
from jaxunlearn.cli.train import Train
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.models.files import load_classifier
from jaxunlearn.training.checkpoints import Checkpoints
from jaxunlearn.training.recipe import Recipe

pytestmark = pytest.mark.long

TINY = ("--options", "width=2", "--recipe.epochs", 2)
# Twenty steps an epoch.
STEPS = 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny training."""
    out = tmp_path_factory.mktemp("trainings") / "whole"
    assert cli("train", "--out", out, "--seed", 5, *TINY) == 0
    return out


@pytest.fixture
def no_compute(monkeypatch):
    """Fails where anything is trained."""

    def fit(*_, **__):
        pytest.fail("training has begun")

    monkeypatch.setattr(training, "fit", fit)


def interrupt_after(monkeypatch, steps):
    """From now on a training ends after so many steps as if by Ctrl-C."""
    fit = training.fit

    def interrupted(*arguments, log, **options):
        def stopping(record):
            log(record)
            if record["step"] + 1 == steps:
                raise KeyboardInterrupt

        return fit(*arguments, log=stopping, **options)

    monkeypatch.setattr(training, "fit", interrupted)


def test_a_training_leaves_the_classifier_its_card_metrics_and_checkpoints(trained):
    names = sorted(path.name for path in trained.iterdir())
    assert names == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
    ]
    assert Checkpoints(trained / "checkpoints").steps() == [STEPS, 2 * STEPS]


def test_the_classifier_is_what_fit_makes_of_the_same_seed(trained):
    classifier, card = load_classifier(trained / "model.safetensors")
    expected = training.fit(
        models.create("smallcnn", num_classes=10, width=2),
        datasets.load("digits", "train", seed=5),
        recipe=Recipe(epochs=2),
        key=keys(5)[0],
        preprocess=datasets.preprocess("digits"),
    )
    for a, b in zip(
        jax.tree.leaves(classifier), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert (card.dataset, card.split_seed, card.forgotten) == ("digits", 5, ())
    assert (card.model, card.options, card.name) == (
        "smallcnn",
        {"width": 2},
        "original",
    )


def test_the_card_says_how_it_was_made_and_what_it_reaches(trained):
    card = json.loads((trained / "model.json").read_text())
    classifier, _ = load_classifier(trained / "model.safetensors")
    for split in ("train", "validation", "test"):
        data = datasets.load("digits", split, seed=5)
        found = evaluate(classifier, data, ())
        stored = card["accuracies"][split]
        np.testing.assert_allclose(stored["per_class"], found.per_class)
        assert card["samples"][split] == len(data)
    assert card["recipe"]["epochs"] == 2
    assert (card["model"], card["options"], card["dataset"]) == (
        "smallcnn",
        {"width": 2},
        "digits",
    )
    assert (card["seed"], card["split_seed"]) == (5, 5)
    assert card["versions"]["jax"] == jax.__version__
    assert card["seconds"] > 0


def test_metrics_have_a_line_for_each_step(trained):
    records = read_metrics(trained / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(2 * STEPS))
    for record in records:
        outputs.check_keys(record, "metrics.jsonl", complete=())
    outputs.check_keys(records[-1], "metrics.jsonl", complete=["metrics.jsonl"])
    config, name = json.loads((trained / "config.json").read_text()), "config.json of a"
    outputs.check_keys(config, f"{name} training", "settings", complete=())
    assert set(outputs.tables()[f"{name} training"]) <= set(config)
    ends = [r["step"] for r in records if "validation_accuracy" in r]
    assert ends == [STEPS - 1, 2 * STEPS - 1]
    card = json.loads((trained / "model.json").read_text())
    found = card["accuracies"]["validation"]["retained_weighted"]
    np.testing.assert_allclose(records[-1]["validation_accuracy"], found)


def test_classes_that_are_left_out_are_never_learnt(tmp_path):
    flags = ("--forget", 3, 7, "--recipe.epochs", 3, "--options", "width=4")
    assert cli("train", "--out", tmp_path / "a", *flags) == 0
    card = json.loads((tmp_path / "a" / "model.json").read_text())
    assert (card["name"], card["forgotten"]) == ("retrained", [3, 7])
    test = card["accuracies"]["test"]
    assert test["forgotten"] == 0
    assert test["retained"] > 50
    # Its metrics are of the classes that it knows.
    last = read_metrics(tmp_path / "a" / "metrics.jsonl")[-1]
    validation = card["accuracies"]["validation"]
    np.testing.assert_allclose(
        last["validation_accuracy"], validation["retained_weighted"]
    )


def test_a_finished_training_says_so(trained, capsys, no_compute):
    flags = ("--out", trained, "--seed", 5, *TINY)
    assert cli("train", *flags, "--resume") == 0
    found = capsys.readouterr()
    assert found.out == (
        f"The training in {trained} is finished: there is nothing to do.\n"
    )
    # What leaves the result as it is may change.
    assert cli("train", *flags, "--resume", "--keep", 1, "--checkpoint-every", 3) == 0


def test_a_killed_export_is_made_up_for_without_training(tmp_path, trained, capsys):
    out = tmp_path / "copy"
    shutil.copytree(trained, out)
    whole = (out / "model.safetensors").read_bytes()
    (out / "model.json").unlink()
    (out / "model.safetensors").write_bytes(b"torn")
    (out / ".model-77.safetensors").write_bytes(b"torn")
    metrics = (out / "metrics.jsonl").read_bytes()
    assert cli("train", "--out", out, "--seed", 5, *TINY, "--resume") == 0
    assert (out / "model.safetensors").read_bytes() == whole
    assert (out / "metrics.jsonl").read_bytes() == metrics
    assert (out / "model.json").is_file()
    assert not list(out.glob(".*"))


def test_a_damaged_result_is_made_again_and_that_is_said(tmp_path, trained, capsys):
    out = tmp_path / "copy"
    shutil.copytree(trained, out)
    whole = (out / "model.safetensors").read_bytes()
    damaged = bytearray(whole)
    damaged[-8] ^= 1
    (out / "model.safetensors").write_bytes(damaged)
    assert cli("train", "--out", out, "--seed", 5, *TINY, "--resume") == 0
    assert_in_words("is damaged: .* It is made again", capsys.readouterr().err)
    assert (out / "model.safetensors").read_bytes() == whole


def test_an_interrupted_training_goes_on_to_the_same_bytes(
    tmp_path, trained, capsys, monkeypatch
):
    out = tmp_path / "out"
    flags = ("--out", out, "--seed", 5, *TINY, "--checkpoint-every", 8)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 27)
        assert cli("train", *flags) == 130
    words = r"interrupted\. What is done lies in .*out; .* --resume takes it up\."
    assert_in_words(words, capsys.readouterr().err)
    assert not (out / "model.json").exists()
    assert cli("train", *flags, "--resume") == 0
    assert_in_words("Going on after 24 of 40 steps.", capsys.readouterr().err)
    found = (out / "model.safetensors").read_bytes()
    assert found == (trained / "model.safetensors").read_bytes()
    records = read_metrics(out / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(2 * STEPS))


def test_a_broken_checkpoint_is_passed_over_in_words(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    flags = ("--out", out, *TINY, "--checkpoint-every", 5)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 23)
        assert cli("train", *flags) == 130
    capsys.readouterr()
    facts = out / "checkpoints" / "20" / "facts.json"
    facts.write_text(facts.read_text().replace("0", "1", 1))
    assert cli("train", *flags, "--resume") == 0
    errors = capsys.readouterr().err
    words = r"The checkpoint \S+20 is broken \(facts.json is not what was written\): "
    assert_in_words(words + r"going on from \S+15\.", errors)
    assert_in_words("Going on after 15 of 40 steps.", errors)


def test_with_nothing_to_resume_it_starts_anew(tmp_path, trained):
    flags = ("--seed", 5, *TINY, "--resume")
    (tmp_path / "empty").mkdir()
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / ".config-7.json").write_text("{")
    for name in ("new", "empty", "early"):
        assert cli("train", "--out", tmp_path / name, *flags) == 0
        found = (tmp_path / name / "model.safetensors").read_bytes()
        assert found == (trained / "model.safetensors").read_bytes()


def test_a_folder_with_a_training_is_not_touched_unasked(trained, capsys, no_compute):
    assert cli("train", "--out", trained, "--seed", 5, *TINY) == 2
    words = "already holds a training: go on with --resume, replace it with --overwrite"
    assert_in_words(words, capsys.readouterr().err)


def test_a_folder_of_something_else_is_refused(tmp_path, capsys, no_compute):
    (tmp_path / "notes.txt").write_text("mine")
    for flag in ("--resume", "--overwrite"):
        assert cli("train", "--out", tmp_path, flag, *TINY) == 2
        assert_in_words("is there and is no training", capsys.readouterr().err)
    assert cli("train", "--out", tmp_path / "notes.txt", *TINY) == 2
    assert_in_words("notes.txt is there and is no training", capsys.readouterr().err)


def test_a_run_is_no_training(tmp_path, capsys, no_compute):
    for name in ("config.json", "metrics.json"):
        (tmp_path / name).write_text("{}")
    for flag in ("--resume", "--overwrite"):
        assert cli("train", "--out", tmp_path, flag, *TINY) == 2
        assert_in_words("is there and is no training", capsys.readouterr().err)
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize("text", ["", "{", '{"recipe": 3}'])
def test_a_broken_configuration_is_not_resumed(tmp_path, capsys, no_compute, text):
    (tmp_path / "config.json").write_text(text)
    assert cli("train", "--out", tmp_path, "--resume", *TINY) == 2
    assert_in_words("--overwrite, or choose another folder", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seed", 6), r"(split_seed \(.*\); )?seed \(5 there, 6 here\)"),
        (("--options", "width=3"), r"options \(\['width=2'\] there, \['width=3'\] her"),
        (("--recipe.epochs", 4), r"recipe\.epochs \(2 there, 4 here\)"),
        (("--forget", 3), "forget"),
        (("--split-seed", 1), r"split_seed \(5 there, 1 here\)"),
    ],
)
def test_other_settings_are_not_resumed(trained, capsys, no_compute, flags, named):
    every = ("--out", trained, "--seed", 5, *TINY, *flags)
    assert cli("train", *every, "--resume") == 2
    words = f"holds a training with other settings, which differ in {named}"
    assert_in_words(words, capsys.readouterr().err)


def test_overwriting_starts_anew_and_leaves_other_files(tmp_path):
    out = tmp_path / "out"
    assert cli("train", "--out", out, "--seed", 1, *TINY) == 0
    first = (out / "model.safetensors").read_bytes()
    for name in ("notes.txt", ".pre-commit-config.yaml"):
        (out / name).write_text("mine")
    (out / ".model-7.safetensors").write_text("half")
    assert cli("train", "--out", out, "--seed", 2, "--overwrite", *TINY) == 0
    assert (out / "model.safetensors").read_bytes() != first
    assert json.loads((out / "config.json").read_text())["seed"] == 2
    for name in ("notes.txt", ".pre-commit-config.yaml"):
        assert (out / name).read_text() == "mine"
    assert not (out / ".model-7.safetensors").exists()
    assert len(read_metrics(out / "metrics.jsonl")) == 2 * STEPS


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--keep", 0), "--keep must be at least 1; it is 0"),
        (("--checkpoint-every", 0), "--checkpoint-every must be at least 1; it is 0"),
        (("--seed", -1), "--seed must be 0 or more"),
        (("--forget", 10), "--forget names class 10, which does not exist"),
        (("--recipe.patience", 0), "patience must be at least 1"),
        (("--recipe.schedule", "steps"), "schedule must be 'cosine', 'multi-step' or"),
        (("--resume", "--overwrite"), "--resume goes on and --overwrite starts anew"),
        (("--model", "alexnet"), "AlexNet needs images of 19 x 19 pixels or more"),
        (("--mean", 0.1, 0.2, 0.3, "--std", 1), "has 3 channels and the images have 1"),
        (("--mean", 0.1, "--std", 1, 1, 1), "has 3 channels and the images have 1"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_made(
    tmp_path, capsys, no_compute, flags, sentence
):
    out = tmp_path / "out"
    assert cli("train", "--out", out, *flags) == 2
    assert_in_words(sentence, capsys.readouterr().err)
    assert not out.exists()


def test_the_default_folder_is_named_by_what_is_trained():
    assert str(Train().place) == "runs/digits-smallcnn-seed-0"
    named = Train(dataset="data/three.npz", model="lenet5", forget=(1, 2), seed=4)
    assert str(named.place) == "runs/three-lenet5-without-1-2-seed-4"


def test_every_option_has_a_sentence_in_the_help(capsys):
    assert cli("train", "--help-all") == 0
    text = capsys.readouterr().out.replace("no-", "")
    for field in dataclasses.fields(Train):
        if field.name != "recipe":
            assert f"--{field.name.replace('_', '-')}" in text
    for field in dataclasses.fields(Recipe):
        assert f"--recipe.{field.name.replace('_', '-')}" in text


def test_a_training_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    env = environment(tmp_path / "cache")

    def command(name, every):
        flags = ["--out", tmp_path / name, "--checkpoint-every", every, "--resume"]
        flags += ["--options", "width=2", "--recipe.epochs", 10, "--seed", 5]
        return [sys.executable, "-m", "jaxunlearn", "train", *map(str, flags)]

    folder = tmp_path / "killed"
    draw = random.Random(int(time.time()))
    done = killed_until_done(command("killed", 6), folder, env, 6, draw)
    going_on = re.search(r"Going on after (\d+) of 200 steps", done.stderr)
    assert int(going_on[1]) > 0
    # With a checkpoint every epoch, and never killed.
    subprocess.run(command("whole", STEPS), env=env, check=True, capture_output=True)
    whole, killed = (
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("whole", "killed")
    )
    assert whole == killed
