"""`jaxunlearn difficulty`: its table, the index files that it writes, its refusals."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import outputs
import pytest
from safetensors.numpy import save_file
from scipy.special import softmax
from test_cli import cli

from jaxunlearn import datasets, models
from jaxunlearn.classifier.classifier import freeze
from jaxunlearn.cli import COMMANDS
from jaxunlearn.cli.flags import parse
from jaxunlearn.cli.indices import read_indices
from jaxunlearn.models.files import Card, load_classifier, read_card, save_classifier

PAGE = Path(__file__).parents[2] / "docs" / "difficulty.md"


def write(path, seed=0, **fields):
    """A tiny network that is not trained."""
    card = Card(
        model="smallcnn",
        num_classes=10,
        options={"width": 2},
        image_shape=(8, 8, 1),
        dataset="digits",
    )
    model = models.create("smallcnn", num_classes=10, width=2)
    variables = model.init(jax.random.key(seed), jnp.ones((1, 8, 8, 1)))
    classifier = freeze(model, variables, preprocess=datasets.preprocess("digits"))
    # Logits of some size, so that margins of the two seeds differ.
    params = jax.tree.map(lambda leaf: 2 * leaf, classifier.params)
    full = {**vars(card), **fields}
    save_classifier(path, classifier.replace(params=params), Card(**full))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write(folder / f"{seed}.safetensors", seed) for seed in (0, 1)]


def twin(files, seed=0):
    """Labels, mean margins and mean probabilities, in float64."""
    train = datasets.load("digits", "train", seed=seed)
    margins, probabilities = [], []
    for path in files:
        z = np.asarray(load_classifier(path)[0](train.images), np.float64)
        own = np.arange(len(z)), train.labels
        rest = z.copy()
        rest[own] = -np.inf
        margins.append(z[own] - rest.max(axis=1))
        probabilities.append(softmax(z, axis=1))
    return train.labels, np.mean(margins, axis=0), np.mean(probabilities, axis=0)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.long
def test_the_hardest_samples_are_written_whole_with_their_hash(files, tmp_path, capsys):
    out = tmp_path / "new" / "hardest.txt"
    assert cli("difficulty", files[0], "--hardest", 7, "--out", out) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    assert f"SHA-256 of the samples: {sha256}." in " ".join(printed.split())
    margins = twin(files[:1])[1]
    wanted = np.sort(np.argsort(margins, kind="stable")[:7])
    assert read_indices(out, len(margins)).tolist() == wanted.tolist()
    assert [path.name for path in out.parent.iterdir()] == ["hardest.txt"]
    assert cli("difficulty", files[0], "--easiest", 3, "--out", out) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert hashlib.sha256(out.read_bytes()).hexdigest() == sha256


@pytest.mark.long
def test_the_table_is_that_of_means_over_several_networks(files, capsys):
    flags = ("--easiest", "5%", "--confused-with", 8, "--classes", "3,5", 8)
    assert cli("difficulty", *files, *flags, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    outputs.check_keys(found, "difficulty", complete=["difficulty"])
    labels, margins, p = twin(files)
    assert found["samples"] == len(labels)
    assert sorted(row["number"] for row in found["classes"]) == [3, 5, 8]
    confusions = []
    for row in found["classes"]:
        c, own = row["number"], labels == row["number"]
        mass = p[own].mean(axis=0)
        mass[c] = 0
        assert row["samples"] == own.sum()
        assert row["median_margin"] == pytest.approx(np.median(margins[own]), rel=1e-4)
        assert row["confusion"] == pytest.approx(mass.sum(), rel=1e-4)
        assert row["confused_with"] == mass.argmax()
        assert row["mass"] == pytest.approx(mass.max(), rel=1e-4)
        confusions.append(row["confusion"])
    assert confusions == sorted(confusions)
    among = np.flatnonzero(np.isin(labels, (3, 5)))
    count = round(0.05 * len(among))
    wanted = np.sort(among[np.argsort(p[among, 8], kind="stable")[:count]])
    lines = "".join(f"{i}\n" for i in wanted)
    chosen = found["chosen"]
    assert chosen["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert chosen["margins"] == pytest.approx(
        [margins[wanted].min(), margins[wanted].max()], rel=1e-4
    )
    counts = {str(c): int((labels[wanted] == c).sum()) for c in (3, 5)}
    assert chosen["per_class"] == {c: n for c, n in counts.items() if n}


@pytest.mark.long
def test_indices_are_of_the_split_of_the_card(tmp_path, capsys):
    model = write(tmp_path / "a.safetensors", split_seed=7)
    out = tmp_path / "a.txt"
    assert cli("difficulty", model, "--hardest", 5, "--out", out) == 0
    assert "of --split-seed 7, for --forget-indices" in said(capsys)
    margins = twin([model], seed=7)[1]
    wanted = np.sort(np.argsort(margins, kind="stable")[:5]).tolist()
    assert read_indices(out, len(margins)).tolist() == wanted
    other = write(tmp_path / "b.safetensors", split_seed=8)
    assert cli("difficulty", model, other) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "the split of --split-seed 8, and" in err
    assert "give models of one split" in err


@pytest.mark.long
def test_what_was_chosen_is_what_is_forgotten(files, tmp_path, capsys):
    rows, out = tmp_path / "rows.txt", tmp_path / "b.safetensors"
    assert cli("difficulty", files[0], "--hardest", 9, "--out", rows) == 0
    sha256 = re.search(r"samples: ([0-9a-f]{64})\.", said(capsys))[1]
    small = ("--learning-rates", "--method", "fine-tune", "--fine-tune.steps", 2)
    given = ("--checkpoint", files[0], "--forget-indices", rows, "--out", out)
    assert cli("unlearn", *given, "--samples-sha256", sha256, *small) == 0
    card, _ = read_card(out)
    assert (card.samples_sha256, len(card.forgotten_samples)) == (sha256, 9)
    # What has forgotten something is no measure of difficulty.
    assert cli("difficulty", files[1], out) == 2
    assert "has forgotten 9 samples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--hardest", 5, "--easiest", 5], "--hardest and --easiest are two choices"),
        (["--out", "a.txt"], "--out is for chosen samples"),
        (["--confused-with", 3], "--confused-with is for chosen samples"),
        (["--hardest", "2.0"], "--hardest 2.0 has two readings"),
        (["--hardest", 5, "--out", "a.npy"], "end it in .txt"),
        (["--hardest", 5, "--out", "."], "is there: choose another file"),
    ],
)
def test_bad_requests_are_refused_before_a_file_is_read(
    flags, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli("difficulty", "none.safetensors", *flags) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--hardest", 1294], "--hardest 1294 names all 1294 training samples"),
        (["--hardest", 2000], "asks for 2000 of the 1294 samples to choose from"),
        (["--easiest", "0.0001"], "asks for 0 of the 1294 samples"),
        (["--hardest", 5, "--confused-with", "3,4"], "takes one class"),
        (["--hardest", 5, "--classes", "cat"], "--classes asks for 'cat'"),
        (["--hardest", 5, "--confused-with", 11], "class 11, which does not exist"),
        (
            ["--hardest", 5, "--confused-with", 3, "--classes", 3],
            "of the 0 samples to choose from",
        ),
    ],
)
def test_what_the_data_do_not_have_is_refused(flags, sentence, files, tmp_path, capsys):
    out = tmp_path / "a.txt"
    assert cli("difficulty", files[0], *flags, "--out", out) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


@pytest.mark.long
def test_networks_of_other_data_are_refused(files, tmp_path, capsys):
    other = write(tmp_path / "b.safetensors", dataset="cifar10")
    assert cli("difficulty", files[0], other) == 2
    assert "all must be models of the same data" in capsys.readouterr().err
    gone = write(tmp_path / "c.safetensors", forgotten=(3,))
    assert cli("difficulty", gone) == 2
    assert "has forgotten class 3" in capsys.readouterr().err


def test_files_are_words_by_themselves_and_may_be_several():
    for words in ("a b --hardest 5", "--hardest 5 a b", "--checkpoint a b --hardest=5"):
        found = parse("difficulty", COMMANDS["difficulty"], words.split())
        assert (found.checkpoint, found.hardest) == ((Path("a"), Path("b")), "5")
    with pytest.raises(ValueError, match="needs --checkpoint FILE"):
        parse("difficulty", COMMANDS["difficulty"], ["--hardest", "5"])


def test_the_command_lines_of_the_page_are_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    # Of another library, so that it sets no defaults.
    save_file({"x": np.zeros(1)}, "a/model.safetensors")
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    lines = block.splitlines()
    assert len(lines) == 8
    for line in lines:
        program, name, *flags = shlex.split(line)
        assert program == "jaxunlearn"
        settings = parse(name, COMMANDS[name], flags)
        assert name == "train" or "safetensors" in line or settings.samplewise
