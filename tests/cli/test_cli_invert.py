"""`jaxunlearn invert`: what it writes, what it refuses, and how it goes on."""

import dataclasses
import hashlib
import inspect
import itertools
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from test_cli import assert_in_words, cli

import jaxunlearn as ju
from jaxunlearn import inversion
from jaxunlearn.cli.invert import Invert
from jaxunlearn.inversion import ImageAdam, ImagePrior
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.models.files import load_classifier, save_classifier

pytestmark = pytest.mark.long

# Always eighteen images, so that one program serves nearly all.
STEPS, EACH = 60, 2
SHORT = ("--steps", STEPS, "--images-per-class", EACH)
ONE_CLASS = ("--steps", STEPS, "--images-per-class", 18, "--classes", 4)
RETAINED = [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a tiny run that forgets the threes."""
    out = tmp_path_factory.mktemp("runs") / "ran"
    flags = ("--methods", "retrain", "--options", "width=2", "--recipe.epochs", 2)
    assert cli("run", "--out", out, *flags) == 0
    return out


@pytest.fixture(scope="module")
def inverted(ran):
    """The folder of a tiny inversion of that run's original."""
    assert cli("invert", "--from-run", ran, *SHORT) == 0
    return ran / "inversion"


@pytest.fixture
def no_compute(monkeypatch):
    """Fails where anything is inverted."""

    def invert(*_, **__):
        pytest.fail("the inversion has begun")

    monkeypatch.setattr(inversion, "invert", invert)


def interrupt_after(monkeypatch, steps):
    """From now on an inversion ends after so many steps as if by Ctrl-C."""
    invert = inversion.invert

    def interrupted(*arguments, callback, **options):
        def stopping(step, terms):
            callback(step, terms)
            if step + 1 == steps:
                raise KeyboardInterrupt

        return invert(*arguments, callback=stopping, **options)

    monkeypatch.setattr(inversion, "invert", interrupted)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def record(folder):
    return json.loads((folder / "inversion.json").read_text())


def stored(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def saved(path, like, change=lambda x: x, **entries):
    """A copy of a saved classifier with other numbers, or another card."""
    classifier, card = load_classifier(like)
    params = jax.tree.map(change, classifier.params)
    classifier = dataclasses.replace(classifier, params=params)
    save_classifier(path, classifier, dataclasses.replace(card, **entries))
    return path


def test_an_inversion_leaves_images_a_sheet_of_each_class_and_its_record(inverted):
    sheets = [f"class-{c}.png" for c in RETAINED]
    assert names(inverted) == [*sheets, "images.npz", "inversion.json"]
    for name in sheets:
        with Image.open(inverted / name) as image:
            width, height = image.size
        assert 500 < width < 1500
        assert 150 < height < 500


def test_the_images_are_what_invert_makes_of_the_seed(inverted, ran):
    found = stored(inverted / "images.npz")
    classifier, _ = load_classifier(ran / "original.safetensors")
    labels = np.tile(RETAINED, EACH)
    expected = ju.invert(
        classifier,
        labels,
        image_shape=(8, 8, 1),
        key=jax.random.key(0),
        steps=STEPS,
    )
    np.testing.assert_array_equal(found["images"], expected)
    np.testing.assert_array_equal(found["labels"], labels)
    assert found["images"].dtype == np.float32
    assert found["labels"].dtype.kind == "i"
    assert found["seed"] == 0
    assert 0 <= found["images"].min() < found["images"].max() <= 1


def test_the_record_says_how_it_was_made_and_what_it_reaches(inverted, ran):
    found, images = record(inverted), stored(inverted / "images.npz")
    data = ju.Data(images["images"], images["labels"])
    for name, file in (("classifier", "original"), ("second", "retrained")):
        classifier, _ = load_classifier(ran / f"{file}.safetensors")
        wanted = evaluate(classifier, data, ())
        reached = found["accuracies"][name]
        assert reached["overall"] == pytest.approx(wanted.retained_weighted)
        assert list(map(int, reached["per_class"])) == RETAINED
        np.testing.assert_allclose(
            list(reached["per_class"].values()), wanted.per_class[RETAINED]
        )
    assert found["settings"]["steps"] == STEPS
    assert found["settings"]["classes"] == RETAINED
    assert found["settings"]["prior.feature"] == 0.1
    origin = found["checkpoint"]
    original = ran / "original.safetensors"
    assert origin["path"] == str(original)
    assert origin["sha256"] == hashlib.sha256(original.read_bytes()).hexdigest()
    assert origin["card"]["model"] == "smallcnn"
    assert found["second"]["path"] == str(ran / "retrained.safetensors")
    assert found["student"] is None
    assert set(found["seconds"]) == {"steps", "compile"}
    assert found["device"] == "cpu"
    assert found["versions"]["jax"] == jax.__version__


def test_the_terms_are_those_of_the_images(inverted, ran):
    images = stored(inverted / "images.npz")
    classifier, _ = load_classifier(ran / "original.safetensors")
    arrays = jnp.asarray(images["images"]), jnp.asarray(images["labels"])
    wanted = jax.jit(inversion.inversion_terms)(classifier, *arrays)
    found = record(inverted)["terms"]
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), rel=1e-4), name


def test_it_shows_its_steps_its_terms_and_a_table(ran, tmp_path, capsys):
    flags = ("--classes", 7, 2, "--images-per-class", 9, "--steps", STEPS)
    flags += ("--out", tmp_path / "out")
    assert cli("invert", "--from-run", ran, *flags) == 0
    shown = capsys.readouterr()
    assert_in_words(f"{STEPS}/{STEPS}", shown.err)
    for term in ("total", "cross_entropy", "total_variation", "l2", "feature"):
        assert_in_words(rf"{term}=\d", shown.err)
    assert "competition" not in shown.err
    rows = [line.split() for line in shown.out.splitlines() if line.strip()]
    assert " ".join(rows[0]) == "class images recognised % by the second %"
    assert [row[:2] for row in rows[2:5]] == [["2", "9"], ["7", "9"], ["all", "18"]]
    found = record(tmp_path / "out")["accuracies"]
    for row, name in zip(rows[2:4], ("2", "7"), strict=True):
        for value, judge in zip(row[2:], ("classifier", "second"), strict=True):
            assert float(value) == pytest.approx(found[judge]["per_class"][name], 1e-3)
    assert shown.out.endswith(f"Written to {tmp_path / 'out'}.\n")


def test_an_interrupted_inversion_goes_on_to_the_same_bytes(
    ran, inverted, tmp_path, capsys, monkeypatch
):
    """After the first of two batches, which is not made again."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ("--from-run", ran, *SHORT, "--batch-size", EACH * len(RETAINED) // 2)
    assert cli("invert", *flags, "--out", whole) == 0
    flags += ("--out", out)
    with monkeypatch.context() as patch:
        interrupt_after(patch, STEPS + 25)
        assert cli("invert", *flags) == 130
    words = r"interrupted\. What is done lies in .*out; .* --resume takes it up\."
    assert_in_words(words, capsys.readouterr().err)
    assert names(out) == ["batches", "inversion-settings.json"]
    assert names(out / "batches") == ["0.json", "0.npy"]
    (out / ".class-3-77.png").write_bytes(b"torn")
    (out / "batches" / ".1-77.npy").write_bytes(b"torn")
    # Nobody is asked to judge the images before there are any.
    other = ("--second", ran / "original.safetensors")
    with monkeypatch.context() as patch:
        interrupt_after(patch, STEPS)  # of the first batch, which is not reached
        assert cli("invert", *flags, *other, "--resume") == 0
    assert_in_words("Going on after 1 of 2 batches", capsys.readouterr().err)
    assert names(out) == names(inverted)
    assert (out / "images.npz").read_bytes() == (whole / "images.npz").read_bytes()
    assert record(out)["terms"] == record(whole)["terms"]
    assert record(out)["second"]["path"].endswith("original.safetensors")


def test_a_killed_export_is_made_up_for(ran, inverted, tmp_path, monkeypatch):
    out = tmp_path / "out"
    flags = ("--from-run", ran, *SHORT, "--out", out)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jaxunlearn.cli.images.plot_sheet", interrupt)
        assert cli("invert", *flags) == 130
    assert not (out / "inversion.json").exists()
    (out / "images.npz").write_bytes(b"torn")
    assert cli("invert", *flags, "--resume") == 0
    assert (out / "images.npz").read_bytes() == (inverted / "images.npz").read_bytes()


def test_a_finished_inversion_says_so(ran, inverted, capsys, no_compute):
    (inverted / "batches").mkdir()  # as if killed at its very end
    flags = ("--from-run", ran, *SHORT, "--resume")
    assert cli("invert", *flags) == 0
    expected = f"The inversion in {inverted} is finished: there is nothing to do.\n"
    assert capsys.readouterr().out == expected
    assert not (inverted / "batches").exists()
    # The same classifier by another name.
    file = ("--checkpoint", ran / "original.safetensors", "--out", inverted)
    second = ("--second", ran / "retrained.safetensors", "--classes", *RETAINED)
    assert cli("invert", *file, *second, *SHORT, "--resume") == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seed", 6), r"seed \(0 there, 6 here\)"),
        (("--steps", 61), r"steps \(60 there, 61 here\)"),
        (("--prior.l2", 0.5), r"prior\.l2 \(0\.1 there, 0\.5 here\)"),
        (("--classes", 3), "classes"),
        (("--learning-rate", 0.2), r"learning_rate \(0\.1 there, 0\.2 here\)"),
        (("--jitter", 1, "--seed", 1), r"jitter \(2 there, 1 here\); .*seed \("),
        (("--second", "original"), "second"),
        (("--student", "retrained"), "prior.competition .* student"),
    ],
)
def test_other_settings_are_not_resumed(
    ran, inverted, capsys, no_compute, flags, named
):
    files = {name: ran / f"{name}.safetensors" for name in ("original", "retrained")}
    flags = [files.get(flag, flag) for flag in flags]
    assert cli("invert", "--from-run", ran, *SHORT, *flags, "--resume") == 2
    words = f"holds an inversion with other settings, which differ in {named}"
    assert_in_words(words, capsys.readouterr().err)
    assert (inverted / "inversion.json").is_file()


def test_what_is_there_is_not_touched_unasked(
    ran, inverted, tmp_path, capsys, no_compute
):
    assert cli("invert", "--from-run", ran, *SHORT) == 2
    words = "already holds an inversion: go on with --resume, replace it with --overwr"
    assert_in_words(words, capsys.readouterr().err)
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt", ran):
        for flag in ("--resume", "--overwrite"):
            assert cli("invert", "--from-run", ran, "--out", out, flag) == 2
            assert_in_words("is there and is no inversion", capsys.readouterr().err)
    assert cli("invert", "--from-run", ran, "--out", tmp_path / "notes.txt/a") == 2
    assert_in_words("The folder .* cannot be made", capsys.readouterr().err)
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_broken_record_is_not_resumed(ran, tmp_path, capsys, no_compute, text):
    (tmp_path / "inversion-settings.json").write_text(text)
    flags = ("--from-run", ran, "--out", tmp_path, "--resume")
    assert cli("invert", *flags) == 2
    assert_in_words("--overwrite, or choose another folder", capsys.readouterr().err)


def test_overwriting_starts_anew_and_leaves_other_files(ran, tmp_path, inverted):
    out = tmp_path / "out"
    shutil.copytree(inverted, out)
    for name in ("notes.txt", "class-x.png", ".images-7.npz", "last-finite.npz"):
        (out / name).write_text("mine")
    flags = ("--from-run", ran, *ONE_CLASS, "--out", out, "--seed", 1)
    assert cli("invert", *flags, "--overwrite") == 0
    own = ["class-4.png", "images.npz", "inversion.json"]
    assert names(out) == sorted([*own, "notes.txt", "class-x.png"])
    found = stored(out / "images.npz")
    assert found["labels"].tolist() == [4] * 18
    assert found["seed"] == 1


def test_early_kills_are_begun_anew(ran, tmp_path):
    (tmp_path / ".inversion-settings-7.json").write_text("{")
    flags = ("--from-run", ran, *ONE_CLASS, "--out", tmp_path)
    assert cli("invert", *flags) == 0
    assert names(tmp_path) == ["class-4.png", "images.npz", "inversion.json"]


def test_a_student_and_the_other_options_reach_the_inversion(
    ran, tmp_path, monkeypatch
):
    seen = {}

    def invert(classifier, labels, *, image_shape, **options):
        seen.update(options)
        return np.full((len(labels), *image_shape), 0.5, np.float32)

    monkeypatch.setattr(inversion, "invert", invert)
    values = {
        "--steps": 7,
        "--jitter": 1,
        "--batch-size": 5,
    }
    flags = [text for pair in values.items() for text in pair]
    flags += ["--learning-rate", 0.25, "--schedule", "multi-step"]
    flags += ["--bounds", 0.25, 0.75]
    flags += ["--prior.feature", 0.5, "--student", ran / "retrained.safetensors"]
    flags += ["--classes", 1, "--images-per-class", 5, "--out", tmp_path / "a"]
    assert cli("invert", "--checkpoint", ran / "original.safetensors", *flags) == 0
    student, _ = load_classifier(ran / "retrained.safetensors")
    for one, other in zip(
        *map(jax.tree.leaves, (seen.pop("student"), student)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    for flag, value in values.items():
        assert seen.pop(flag[2:].replace("-", "_")) == value
    assert seen.pop("bounds") == (0.25, 0.75)
    assert seen.pop("prior") == ImagePrior(feature=0.5)
    assert seen.pop("optimizer") == ImageAdam(0.25, "multi-step")
    assert seen.pop("finished") == []
    assert set(seen) == {"key", "progress", "callback"}
    found = record(tmp_path / "a")
    assert found["student"]["path"] == str(ran / "retrained.safetensors")
    assert found["settings"]["prior.competition"] == 1
    assert 0 <= found["terms"]["competition"] <= 1


def test_a_network_retrained_without_a_class_does_not_judge_it(
    ran, tmp_path, monkeypatch
):
    def invert(classifier, labels, *, image_shape, **_):
        return np.full((len(labels), *image_shape), 0.5, np.float32)

    monkeypatch.setattr(inversion, "invert", invert)
    flags = ("--from-run", ran, "--images-per-class", 6, "--out", tmp_path / "a")
    assert cli("invert", *flags, "--classes", 1, 3, 7) == 0
    found = record(tmp_path / "a")
    assert found["second"] is None
    assert found["accuracies"]["second"] is None
    assert list(found["accuracies"]["classifier"]["per_class"]) == ["1", "3", "7"]
    # Unless it is asked to.
    second = ("--second", ran / "retrained.safetensors", "--overwrite")
    assert cli("invert", *flags, "--classes", 1, 3, 7, *second) == 0
    assert record(tmp_path / "a")["accuracies"]["second"]["per_class"]["3"] == 0


def test_an_objective_that_is_not_finite_leaves_the_last_images(ran, tmp_path, capsys):
    out = tmp_path / "out"
    # Weights that are finite, and terms whose sum is not.
    flags = ("--from-run", ran, *ONE_CLASS, "--out", out)
    weights = ((f"--prior.{n}", 3e38) for n in ("total-variation", "l2", "feature"))
    assert cli("invert", *flags, *itertools.chain(*weights)) == 2
    path = out / "last-finite.npz"
    shown = capsys.readouterr().err
    assert_in_words("objective is not finite at step 0", shown)
    words = f"The last finite images are written to {re.escape(str(path))}. Start anew"
    assert_in_words(words, shown)
    assert "attribute" not in shown
    found = stored(path)
    assert np.isfinite(found["images"]).all()
    assert found["labels"].tolist() == [4] * 18
    assert names(out) == ["inversion-settings.json", "last-finite.npz"]
    assert cli("invert", *flags, "--overwrite") == 0
    assert "last-finite.npz" not in names(out)


def test_a_training_is_inverted_into_what_it_has_learnt(tmp_path, capsys):
    folder = tmp_path / "training"
    tiny = ("--options", "width=2", "--recipe.epochs", 1)
    assert cli("train", "--forget", *range(2, 10), "--out", folder, *tiny) == 0
    short = ("--steps", STEPS, "--images-per-class", 9)
    assert cli("invert", "--from-run", folder, *short) == 0
    found = folder / "inversion"
    sheets = ["class-0.png", "class-1.png"]
    assert names(found) == [*sheets, "images.npz", "inversion.json"]
    assert record(found)["second"] is None
    assert record(found)["accuracies"]["second"] is None
    capsys.readouterr()
    (folder / "model.json").unlink()
    assert cli("invert", "--from-run", folder) == 2
    words = "The training in .* is unfinished: finish it with jaxunlearn train --resume"
    assert_in_words(words, capsys.readouterr().err)


def test_names_of_classes_are_on_the_sheets_where_they_are_known(
    ran, tmp_path, monkeypatch
):
    titles = []

    def plot(path, images, captions, *, title, marked):
        titles.append((title, captions))

    monkeypatch.setattr("jaxunlearn.cli.images.plot_sheet", plot)

    def shown(names):
        like = ran / "original.safetensors"
        file = saved(tmp_path / "a.safetensors", like, class_names=names)
        flags = (*ONE_CLASS, "--out", tmp_path / "out", "--overwrite")
        assert cli("invert", "--checkpoint", file, *flags) == 0
        return titles.pop()

    title, captions = shown(tuple(f"animal number {c}" for c in range(10)))
    assert re.match(r"class 4 \(animal number 4\): .* takes \d+ of 18 images", title)
    assert all(re.fullmatch(r"animal num…: \d+ %", text) for text in captions)
    title, captions = shown(None)
    assert re.match(r"class 4: .* takes \d+ of 18 images", title)
    assert all(re.fullmatch(r"\d: \d+ %", text) for text in captions)


@pytest.fixture(scope="module")
def odd(ran, tmp_path_factory):
    """Files and folders that cannot be inverted."""
    root, original = tmp_path_factory.mktemp("odd"), ran / "original.safetensors"
    (root / "folder.safetensors").mkdir()
    (root / "damaged.safetensors").write_bytes(original.read_bytes()[:1000])
    save_file({"x": np.zeros(3, np.float32)}, root / "foreign.safetensors")
    (root / "torch.pt").write_bytes(b"")
    saved(root / "forgetful.safetensors", original, forgotten=tuple(range(10)))
    (root / "doing.partial").mkdir()
    (root / "doing.partial" / "request.json").write_text("{}")
    (root / "empty").mkdir()
    for name, text in {"torn": "{", "mute": "{}", "wild": '{"forget": [10]}'}.items():
        (root / name).mkdir()
        shutil.copy(original, root / name / "original.safetensors")
        (root / name / "config.json").write_text(text)
    classifier, card = load_classifier(original)
    wide = ju.models.create("smallcnn", num_classes=4, width=2)
    shapes = jax.eval_shape(wide.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    variables = jax.tree.map(lambda s: jnp.ones(s.shape), shapes)
    options = {"preprocess": classifier.preprocess}
    card = dataclasses.replace(card, num_classes=4)
    save_classifier(
        root / "four.safetensors", ju.freeze(wide, variables, **options), card
    )
    saved(root / "large.safetensors", original, image_shape=(9, 9, 1))
    bare, card = load_classifier(original)
    bare = dataclasses.replace(bare, preprocess=None)
    save_classifier(root / "bare.safetensors", bare, card)
    return root


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("", "There is nothing to invert: name a classifier with --checkpoint FILE"),
        ("--checkpoint RAN/original.safetensors --from-run RAN", "are both given"),
        ("--checkpoint none.safetensors", "There is no file .*none.safetensors"),
        ("--checkpoint folder.safetensors", "is a folder: give it as --from-run"),
        ("--checkpoint damaged.safetensors", "is no whole safetensors file"),
        (
            "--checkpoint foreign.safetensors",
            "jaxunlearn did not write .*foreign.safetensors",
        ),
        ("--checkpoint torch.pt", "jaxunlearn did not write .*torch.pt"),
        ("--checkpoint forgetful.safetensors", "has forgotten all its classes"),
        ("--from-run nowhere", "nowhere is not there: --from-run takes the folder"),
        ("--from-run torch.pt", "torch.pt is a file: --from-run takes the folder"),
        ("--from-run doing", "The run in .*doing.partial is unfinished"),
        ("--from-run doing.partial", "The run in .*doing.partial is unfinished"),
        ("--from-run empty", "is neither a run .* nor a training"),
        ("--from-run torn", "config.json is no JSON"),
        ("--from-run mute", "does not say which classes the run forgets"),
        ("--from-run wild", "forget in the config.json .* names class 10, which does"),
        ("--from-run RAN --student four.safetensors", "number of classes 4, and that"),
        ("--from-run RAN --second four.safetensors", "--second .* number of classes 4"),
        ("--from-run RAN --second large.safetensors", r"image shape \[9, 9, 1\]"),
        ("--from-run RAN --second bare.safetensors", "pixel range any, and that of"),
        ("--from-run RAN --student none.safetensors", "There is no file .*none"),
        ("--from-run RAN --second torch.pt", "--second takes a .safetensors file"),
        ("--from-run RAN --classes", "--classes names no class"),
        ("--from-run RAN --classes 10", "--classes names class 10, which does not"),
        ("--from-run RAN --classes -1", "--classes names class -1, which does not"),
        ("--from-run RAN --classes 3 3", "--classes names class 3 twice"),
        ("--from-run RAN --seed -1", "--seed must be 0 or more"),
        ("--from-run RAN --images-per-class 0", "--images-per-class must be at least"),
        ("--from-run RAN --steps 0", "--steps must be at least 1; it is 0"),
        ("--from-run RAN --batch-size 0", "batch_size must be at least 1"),
        ("--from-run RAN --learning-rate 0", "learning_rate must be positive"),
        ("--from-run RAN --schedule linear", "--schedule must be one of"),
        ("--from-run RAN --jitter -1", "jitter must be 0 or more"),
        ("--from-run RAN --bounds 1 0", "bounds must be"),
        ("--from-run RAN --prior.l2 -1", "--prior: l2 must be finite and not negat"),
        ("--from-run RAN --prior.competition 1", "there is no student to compete with"),
        ("--from-run RAN --resume --overwrite", "--resume goes on and --overwrite sta"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_made(
    ran, odd, tmp_path, monkeypatch, capsys, no_compute, flags, sentence
):
    monkeypatch.chdir(odd)
    out = tmp_path / "out"
    words = flags.replace("RAN", str(ran)).split()
    assert cli("invert", "--out", out, *words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert_in_words(sentence, shown.err)
    assert not out.exists()


def test_the_default_folder_is_named_by_what_is_inverted():
    assert Invert(from_run=Path("runs/a"), seed=3).place == Path("runs/a/inversion")
    file = Invert(checkpoint=Path("runs/a/unsc.safetensors"), seed=3)
    assert file.place == Path("inversions/a-unsc-seed-3")


def test_defaults_are_those_of_the_function():
    parameters = inspect.signature(ju.invert).parameters
    shared = {f.name: f.default for f in dataclasses.fields(Invert)}
    both = shared.keys() & parameters.keys()
    both -= {"image_shape"}  # of PyTorch's weights alone; a card says it otherwise
    assert {"steps", "prior", "jitter", "batch_size"} < both
    for name in both:
        assert shared[name] == parameters[name].default, name
    assert Invert().image_adam() == ImageAdam()


def test_every_option_has_a_sentence_in_the_help(capsys):
    assert cli("invert", "--help-all") == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Invert):
        if field.name != "prior":
            assert f"--{field.name.replace('_', '-')}" in text
    for field in dataclasses.fields(ImagePrior):
        assert f"--prior.{field.name.replace('_', '-')}" in text
