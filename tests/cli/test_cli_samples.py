"""Samples to forget by index or at random: read, refused, run, unlearned, audited."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import outputs
import pytest
from test_cli import cli, strict

from jaxunlearn import datasets, training
from jaxunlearn.cli.indices import (
    digest,
    drawn,
    how_many,
    read_indices,
    write_indices,
)
from jaxunlearn.cli.judging import SAMPLE_METRICS, Outputs
from jaxunlearn.models.files import load_classifier, read_card

COUNT = 20

PAGE = Path(__file__).parents[2] / "docs" / "samples.md"


def npy(path, values):
    np.save(path, values)


def text(path, value):
    path.write_text(value)


@pytest.mark.parametrize(
    ("name", "write", "content"),
    [
        ("a.txt", text, "11\n3\n\n5 # the third\n"),
        ("a.csv", text, "3, 5,11\r\n"),
        ("a.json", text, "[5, 3, 11]"),
        ("a.npy", npy, np.array([11, 5, 3], np.uint8)),
        ("none", text, "\ufeff3;5\t11"),
    ],
)
def test_indices_are_read_from_every_form(name, write, content, tmp_path):
    write(tmp_path / name, content)
    assert read_indices(tmp_path / name, COUNT).tolist() == [3, 5, 11]


@pytest.mark.parametrize(
    ("name", "write", "content", "sentence"),
    [
        ("a.txt", text, "", "names no sample"),
        ("a.txt", text, "1\n20\n", "names sample 20, which does not exist.*0 to 19"),
        ("a.txt", text, "-1\n", "names sample -1, which does not exist"),
        ("a.txt", text, "1\n2\n1\n", "names sample 1 2 times"),
        ("a.txt", text, "\n".join(map(str, range(20))), "names all 20 training sam"),
        ("a.csv", text, "index\n1\n", "Line 1 is 'index', and indices are integers"),
        ("a.txt", text, "1\n2.0\n", "Line 2 is '2.0', and indices are integers"),
        ("a.txt", text, "9" * 30, "Line 1 is '9*', and indices are integers"),
        ("a.json", text, "[1, true]", "Entry 1 is True, and indices are integers"),
        ("a.json", text, '{"a": 1}', "no list"),
        ("a.json", text, "[1,", "no JSON"),
        ("a.npy", npy, np.array([1.0]), "of float64, and indices are integers"),
        ("a.npy", npy, np.array([True]), "np.flatnonzero makes indices of a mask"),
        ("a.npy", npy, np.zeros((2, 1), int), r"shape \(2, 1\)"),
        ("a.npy", text, "1\n", "no array of numbers"),
        ("b.txt", lambda path, _: path.mkdir(), "", "is a folder.*one index a line"),
        ("c.txt", lambda *_: None, "", "is not there: --forget-indices takes a text"),
    ],
)
def test_files_of_anything_else_are_refused(name, write, content, sentence, tmp_path):
    write(tmp_path / name, content)
    with pytest.raises(ValueError, match=sentence):
        read_indices(tmp_path / name, COUNT)


@pytest.mark.parametrize(
    ("word", "number"),
    [("1", 1), ("100", 100), ("0.1", 100), (".25", 250), ("10%", 100), ("0.5 %", 5)],
)
def test_numbers_and_shares_are_told_apart(word, number):
    assert how_many(word, 1000) == number


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("1.0", "has two readings: write 1 for so many samples, or a share below 1"),
        ("100.0", "has two readings: write 100"),
        ("0", "at least one sample"),
        ("0.0001", "of 1000 training samples is none"),
        ("1000", "asks for 1000 of 1000 training samples: leave at least one"),
        ("100%", "between 0% and 100%"),
        *((w, "a number of samples, such as 100") for w in ("1,000", "1e2", "-3", "x")),
    ],
)
def test_amounts_that_mean_nothing_or_two_things_are_refused(word, sentence):
    with pytest.raises(ValueError, match=sentence):
        how_many(word, 1000)


def test_the_hash_is_that_of_the_file_in_any_order(tmp_path):
    write_indices(tmp_path / "a.txt", [11, 5])
    expected = hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest()
    assert digest([5, 11]) == digest(np.array([11, 5])) == expected != digest([5, 12])


def test_drawn_samples_depend_on_the_seed_alone():
    one, same, other = (drawn(5, 100, seed).tolist() for seed in (0, 0, 1))
    assert one == same == sorted(set(one)) != other


def test_membership_scores_are_minus_the_modified_entropy():
    logits, labels = np.array([[2.0, 0.0, -1.0], [0.5, 0.1, 3.0]]), np.array([0, 1])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    own = np.eye(3, dtype=bool)[labels]
    each = np.where(own, (1 - p) * np.log(p), p * np.log(1 - p))
    outputs = Outputs(logits, labels)
    np.testing.assert_allclose(outputs.scores, each.sum(axis=1), rtol=1e-5)
    assert outputs.accuracy == 50


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--forget", 3, "--forget-random", 5], "--forget and --forget-random are"),
        (
            ["--forget-indices", "a", "--forget-random", 5],
            "--forget-indices and --forget-random are given",
        ),
        (["--forget-seed", 1], "--forget-seed is what --forget-random draws by"),
        (["--forget-random", 5, "--forget-seed", -1], "--forget-seed must be 0 or"),
        (["--forget-random", "2.0"], "--forget-random 2.0 has two readings"),
        (["--forget-random", 2000], "asks for 2000 of 1294 training samples"),
        (["--forget-indices", "none.txt"], "none.txt is not there"),
        (
            ["--forget-random", 5, "--samples-sha256", "abc"],
            "The settings are of abc as the SHA-256",
        ),
        (
            ["--forget-random", 5, "--methods", "mask-head", "retrain"],
            "The method mask-head forbids whole classes",
        ),
    ],
)
def test_bad_requests_are_refused_before_any_compute(
    flags, sentence, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("training"))
    monkeypatch.chdir(tmp_path)
    assert cli("run", *flags) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.rglob("*.json"))


TINY = ("--options", "width=2", "--recipe.epochs", 1, "--fine-tune.steps", 2)
TINY += ("--methods", "fine-tune", "retrain", "--learning-rates", 0.001, 0.01)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run that forgets a tenth, without its audit."""
    out = tmp_path_factory.mktemp("runs") / "tenth"
    flags = ("--forget-random", "10%", "--forget-seed", 4, "--no-audit")
    assert cli("run", *TINY, *flags, "--out", out) == 0
    return out


@pytest.mark.long
def test_a_run_says_everywhere_which_samples_it_forgot(tiny):
    written = (tiny / "forget_indices.txt").read_bytes()
    sha256 = hashlib.sha256(written).hexdigest()
    indices = list(map(int, written.split()))
    assert indices == drawn(129, 1294, 4).tolist()
    metrics = strict((tiny / "metrics.json").read_text())
    samplewise = "metrics.json of samples"
    outputs.check_keys(metrics, samplewise, "metrics.json", complete=[samplewise])
    assert metrics["forgotten_samples"] == {"count": 129, "sha256": sha256, "seed": 4}
    assert "validation samples of the same classes" in metrics["learning_rate_rule"]
    assert strict((tiny / "config.json").read_text())["samples_sha256"] == sha256
    for title in ("fine-tune", "retrained"):
        card, _ = read_card(tiny / f"{title}.safetensors")
        assert (card.forgotten_samples, card.forgotten) == (tuple(indices), ())
        stored = strict((tiny / f"{title}.json").read_text())
        assert stored["samples_sha256"] == sha256
    assert read_card(tiny / "original.safetensors")[0].forgotten_samples == ()


@pytest.mark.long
def test_the_numbers_of_a_run_are_those_of_its_classifiers(tiny):
    train, test = (datasets.load("digits", name) for name in ("train", "test"))
    rows = np.loadtxt(tiny / "forget_indices.txt", dtype=int)
    gone = np.isin(np.arange(len(train)), rows)
    records = strict((tiny / "metrics.json").read_text())["classifiers"]
    for title, record in records.items():
        classifier, _ = load_classifier(tiny / f"{title}.safetensors")
        assert set(SAMPLE_METRICS) <= set(record)
        for name, data, part in (
            ("forgotten_samples", train, gone),
            ("retained_samples", train, ~gone),
            ("test_samples", test, slice(None)),
        ):
            predicted = np.asarray(classifier(data.images[part])).argmax(axis=1)
            right = 100 * (predicted == data.labels[part]).mean()
            assert record[name] == pytest.approx(right, abs=0.1)
    assert records["original"]["test_logit_change"] is None
    # The rule's own numbers stand beside each rate.
    trial = records["fine-tune"]["validation_trials"][0]
    assert set(trial) >= {"learning_rate", "validation", "heldout", "forgotten"}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::jaxunlearn.methods.NotForgotten")
def test_the_page_on_samples_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(code, PAGE.name, "exec"), {"__name__": "__main__"})  # noqa: S102
    assert capsys.readouterr().out.strip()


@pytest.mark.long
def test_a_configuration_is_of_the_same_samples_or_refused(tiny, tmp_path, capsys):
    out = tmp_path / "again"
    config = ("--config", tiny / "config.json", "--no-audit")
    assert cli("run", *config, "--out", out) == 0
    again, first = (strict((f / "metrics.json").read_text()) for f in (out, tiny))
    assert again["forgotten_samples"] == first["forgotten_samples"]
    # Flags take the place of what is stored, with its hash and seed.
    given = (*config, "--forget-random", 5, "--out", out)
    assert cli("run", *given) == 2  # only since it is there
    assert "already holds a run" in capsys.readouterr().err
    stored = json.loads((tiny / "config.json").read_text())
    (tmp_path / "rows.txt").write_text("1\n2\n")
    stored |= {"forget_random": None, "forget_seed": None}
    stored |= {"forget_indices": str(tmp_path / "rows.txt")}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert cli("run", "--config", tmp_path / "config.json", "--out", out) == 2
    assert "restore the file of --forget-indices" in capsys.readouterr().err


@pytest.mark.long
def test_a_run_audits_samples_and_so_does_audit(tmp_path, capsys):
    out = tmp_path / "run"
    (tmp_path / "rows.json").write_text(json.dumps(list(range(0, 200, 2))))
    flags = ("--forget-indices", tmp_path / "rows.json", "--out", out)
    assert cli("run", *TINY, *flags) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 80
    audits = strict((out / "metrics.json").read_text())["audits"]
    names = {row["name"] for row in audits["fine-tune"]["rows"]}
    assert {"accuracy/samples", "membership"} <= names
    assert audits["fine-tune"]["verdict"] in " ".join(printed.split())
    model = ("--checkpoint", out / "fine-tune.safetensors")
    assert cli("audit", *model, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["verdict"] == audits["fine-tune"]["verdict"]
    assert cli("audit", *model, "--which", "probe") == 2
    assert "has no meaning where samples" in capsys.readouterr().err
    (tmp_path / "other.txt").write_text("1\n")
    assert cli("audit", *model, "--forget-indices", tmp_path / "other.txt") == 2
    assert "was trained with sample 1" in capsys.readouterr().err


@pytest.mark.long
def test_a_saved_classifier_forgets_samples_one_request_after_another(tiny, tmp_path):
    small = ("--learning-rates", "--method", "fine-tune", "--fine-tune.steps", 2)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    rows = tmp_path / "rows.txt"
    rows.write_text("4\n7\n")
    start = ("--checkpoint", tiny / "original.safetensors", "--out", first)
    assert cli("unlearn", *start, "--forget-indices", rows, *small) == 0
    on = ("--checkpoint", first, "--out", second)
    assert cli("unlearn", *on, "--forget-random", 3, *small) == 0
    card, _ = read_card(second)
    assert {4, 7} < set(card.forgotten_samples)
    assert card.samples_sha256 == digest(card.forgotten_samples)
    assert card.forgotten == ()
    assert cli("run", "--checkpoint", second, "--forget", 3) == 2
