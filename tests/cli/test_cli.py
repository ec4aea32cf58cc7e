"""The command line: whole runs, what they leave behind, and what is refused."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import outputs
import pytest
from PIL import Image

import jaxunlearn
from jaxunlearn import methods, training
from jaxunlearn.cli import COMMANDS, keep_programs, main
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.flags import Command, parse
from jaxunlearn.cli.folder import OutputFolder
from jaxunlearn.cli.run import RUN, Run, read_config
from jaxunlearn.cli.settings import keys
from jaxunlearn.datasets import load
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.models.files import load_classifier
from jaxunlearn.tasks import Task, split_by_class

STEPS = ("--covarnav.steps", "3", "--unsc.steps", "3", "--unprojected.steps", "3")
RATES = ("--learning-rates", "0.01", "0.1")
# Short, but of the default shapes, so that the headline's run compiles little anew.
TINY = (
    "--no-audit",
    "--recipe.epochs",
    "2",
    "--covarnav.inversion-steps",
    "5",
    *STEPS,
    *RATES,
)
RETAINED = [0, 1, 2, 4, 5, 6, 7, 8, 9]
TITLES = ["original", "covarnav", "unsc", "unprojected", "retrained"]


def cli(*flags):
    """The exit code."""
    try:
        return main([str(flag) for flag in flags])
    except SystemExit as exit:  # after --help
        return exit.code


@dataclasses.dataclass
class Finished:
    out: Path
    stdout: str
    stderr: str

    def file(self, title):
        return self.out / f"{title}.safetensors"


def finish(out, *flags):
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        assert cli("run", "--out", out, *flags) == 0, stderr.getvalue()
    return Finished(out, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run of every method."""
    return finish(tmp_path_factory.mktemp("runs") / "whole", *TINY)


@pytest.fixture
def no_compute(monkeypatch):
    """Fails where anything is trained: refusals come before."""

    def fit(*_, **__):
        pytest.fail("training has begun")

    monkeypatch.setattr(training, "fit", fit)


def strict(text):
    """JSON without NaN and its kin."""

    def refuse(name):
        pytest.fail(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def metrics(out):
    """The metrics of a run without what differs from one execution to the next."""
    found = strict((out / "metrics.json").read_text())
    for record in found["classifiers"].values():
        assert record.pop("seconds")["compile"] >= 0
    return found


@pytest.mark.long
def test_what_a_run_writes_is_documented(finished):
    names = "metrics.json", "config.json of a run"
    found = [strict((finished.out / name.split()[0]).read_text()) for name in names]
    outputs.check_keys(found[0], names[0], complete=[names[0], "evaluation", "proxies"])
    outputs.check_keys(found[1], names[1], "settings", complete=[names[1]])


@pytest.mark.long
@pytest.mark.core
def test_a_run_leaves_its_files_and_prints_its_table(finished):
    files = {path.name for path in finished.out.iterdir()}
    assert files == {
        *("config.json", "metrics.json", "accuracies.png"),
        *("proxies.png", "proxies.npz"),
        *(f"{title}.safetensors" for title in TITLES),
        *(f"{title}.json" for title in TITLES),
    }
    assert not finished.out.with_name("whole.partial").exists()
    for picture in ("accuracies.png", "proxies.png"):
        with Image.open(finished.out / picture) as image:
            assert min(image.size) > 100
    with np.load(finished.out / "proxies.npz") as proxies:
        assert len(proxies["images"]) == len(proxies["labels"]) == 9 * 32
        assert proxies["seed"] == 0
    table = [line.split() for line in finished.stdout.splitlines()]
    assert [row[0] for row in table if row and row[0] in TITLES] == TITLES
    records = metrics(finished.out)["classifiers"]
    for row in table:
        if row and row[0] in TITLES:
            record = records[row[0]]
            shown = [float(x) for x in row[1:3]]
            wanted = [record["test"]["retained"], record["test"]["forgotten"]]
            assert shown == pytest.approx(wanted, abs=0.006)
            if row[0] != "original":
                change = record["retained_logit_change"]
                assert float(row[3]) == pytest.approx(change, abs=6e-4)
    assert max(map(len, finished.stdout.splitlines()[:-1])) <= 80
    # Progress and results can be told apart.
    assert "covarnav" in finished.stderr
    assert "━" not in finished.stdout


@pytest.mark.long
def test_a_run_judges_its_proxies(finished):
    found = metrics(finished.out)["proxies"]
    captured = found["captured_energy"]
    assert set(captured) == set(found["ranks"]) == set(found["mean_angle"])
    assert all(0.3 < share <= 1 + 1e-5 for share in captured.values())
    assert found["second_accuracy"] is not None
    true = found["with_true_images"]
    assert true["images"] == 9 * 32
    said = " ".join(finished.stdout.split())
    assert f"Acc_r {true['retained']:.2f}" in said
    assert f"in a layer ({min(captured, key=captured.get)})" in said


@pytest.mark.long
def test_metrics_are_those_of_the_saved_classifiers(finished):
    test = load("digits", "test", seed=0)
    forgotten, retained = split_by_class(test, [3])
    for title, record in metrics(finished.out)["classifiers"].items():
        classifier, card = load_classifier(finished.file(title))
        assert card.name == title
        assert card.forgotten == (() if title == "original" else (3,))
        right = {
            label: np.mean(logits(classifier, part.images).argmax(1) == part.labels)
            for label, part in (("forgotten", forgotten), ("retained", retained))
        }
        assert record["test"]["forgotten"] == pytest.approx(100 * right["forgotten"])
        weighted = record["test"]["retained_weighted"]
        assert weighted == pytest.approx(100 * right["retained"])


@pytest.mark.long
def test_rates_are_of_the_grid_and_stored(finished):
    config = strict((finished.out / "config.json").read_text())
    assert config["learning_rates"] == [0.01, 0.1]
    for name in ("covarnav", "unsc", "unprojected"):
        record = metrics(finished.out)["classifiers"][name]
        assert [t["learning_rate"] for t in record["validation_trials"]] == [0.01, 0.1]
        gains = [t["retained"] - t["forgotten"] for t in record["validation_trials"]]
        smaller = gains[0] >= max(gains) - 1
        assert record["learning_rate"] == (0.01 if smaller else 0.1)
        # The configuration holds what was asked for, the metrics what was chosen.
        assert record["tuned"] == {"learning_rate": record["learning_rate"]}
        assert config[name]["learning_rate"] == methods.by_name[name]().learning_rate


@pytest.mark.long
@pytest.mark.core
def test_a_stored_configuration_runs_again_to_the_same_metrics(finished, tmp_path):
    config = finished.out / "config.json"
    again = finish(tmp_path / "again", "--config", config)
    assert metrics(again.out) == metrics(finished.out)
    assert read_config(again.out / "config.json") == read_config(config)


@pytest.mark.long
def test_neither_order_nor_company_changes_a_method(finished, tmp_path):
    config = finished.out / "config.json"
    flags = ("--methods", "retrain", "unprojected", "--config", config)
    records = metrics(finish(tmp_path / "two", *flags).out)["classifiers"]
    assert list(records) == ["original", "retrained", "unprojected"]
    whole = metrics(finished.out)["classifiers"]
    assert records == {title: whole[title] for title in records}
    assert not (tmp_path / "two" / "proxies.png").exists()


@pytest.mark.long
def test_several_classes_and_a_rate_by_hand(finished, tmp_path):
    flags = ("--config", finished.out / "config.json", "--forget", 3, 5)
    flags += ("--methods", "unprojected", "--learning-rates")
    out = finish(tmp_path / "a", *flags, "--unprojected.learning-rate", 0.05).out
    record = metrics(out)["classifiers"]["unprojected"]
    assert record["test"]["forget_classes"] == [3, 5]
    assert record["learning_rate"] == 0.05
    assert record["validation_trials"] == []


@pytest.fixture
def trained(monkeypatch):
    """The classes of each set that is trained on."""
    seen, fit = [], training.fit

    def counted(model, train, **options):
        seen.append(sorted(set(train.labels.tolist())))
        return fit(model, train, **options)

    monkeypatch.setattr(training, "fit", counted)
    return seen


@pytest.mark.long
@pytest.mark.core
def test_a_killed_run_is_taken_up_where_it_was(finished, tmp_path, trained):
    out, partial = tmp_path / "killed", tmp_path / "killed.partial"
    flags = (*TINY, "--methods", "covarnav", "retrain")
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxunlearn", "run", *flags, "--out", out],
        cwd=Path(jaxunlearn.__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (partial / "pieces" / "original.json").exists():
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert not out.exists()
    # What a kill in the middle of writing leaves.
    (partial / ".covarnav-1.safetensors").write_bytes(b"half")
    resumed = finish(out, *flags)
    assert "Taking up the unfinished run" in resumed.stderr
    assert trained == [RETAINED]
    whole = metrics(finished.out)
    titles = ("original", "covarnav", "retrained")
    whole["classifiers"] = {title: whole["classifiers"][title] for title in titles}
    assert metrics(out) == whole
    left = {"unsc", "unprojected"}
    files = {path.name for path in finished.out.iterdir()}
    found = {path.name for path in out.iterdir()}
    assert found == {name for name in files if name.split(".")[0] not in left}


@pytest.mark.long
def test_an_interrupted_run_is_taken_up_with_its_pictures(
    finished, tmp_path, monkeypatch, capsys, trained
):
    out, partial = tmp_path / "a", tmp_path / "a.partial"
    flags = ("run", *TINY, "--out", out, "--methods", "covarnav", "retrain")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(methods.Retrain, "__call__", interrupt)
        assert cli(*flags) == 130
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("jaxunlearn: interrupted. What is done lies in")
    assert str(partial) in last
    assert not out.exists()
    assert (partial / "proxies.png").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(methods.CovarNav, "_inverted", pytest.fail)
        assert cli(*flags, "--overwrite") == 0
    assert trained == [list(range(10)), RETAINED]
    picture = (finished.out / "proxies.png").read_bytes()
    assert (out / "proxies.png").read_bytes() == picture


def test_a_run_goes_by_default_where_its_settings_say(
    tmp_path, monkeypatch, capsys, no_compute
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits-forget-3-5-seed-7").mkdir(parents=True)
    assert cli("run", "--forget", 3, 5, "--seed", 7) == 2
    assert "runs/digits-forget-3-5-seed-7 is there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--forget", 10], "class 10, which does not exist: the classes are 0 to 9"),
        (["--forget", -1], "class -1, which does not exist"),
        (["--forget", *range(10)], "names all 10 classes"),
        (["--forget", 3, 3], "names class 3 twice"),
        (["--forget"], "--forget names no class"),
        (["--forget", "x"], "--forget asks for 'x', and there is no such class"),
        (["--size", 8, "x"], "--size takes 2 values, each an integer; it is '8 x'"),
        (["--mean", 0.1, "--std"], "--mean and --std go together"),
        (["--dataset", "mnits"], "no data set 'mnits'; there are: .*digits"),
        (["--size", 8], "--size takes 2 values, each an integer; it is '8'"),
        (["--model", "x"], "--model must be one of .*'smallcnn'.*; it is 'x'"),
        (["--methods", "unsc", "x"], "--methods takes values, each one of 'covarnav'"),
        (["--methods", "unsc", "unsc"], r"each once; it is \['unsc', 'unsc'\]"),
        (["--methods"], "--methods takes at least one method"),
        (["--learning-rates", 0.1, 0], "positive and finite; one is 0.0"),
        (["--learning-rates", -0.1], "positive and finite; one is -0.1"),
        (["--learning-rates", "nan"], "positive and finite; one is nan"),
        (["--unsc.learning-rate", 0.3], "--unsc.learning-rate has no effect"),
        (["--unsc.learning_rate=0.3"], "--unsc.learning-rate has no effect"),
        (["--seed", -1], "--seed must be 0 or more"),
        (["--seed", 2**32], "--seed must be 0 or more and less"),
        (["--recipe.epochs", 0], "--recipe: epochs must be at least 1"),
        (["--covarnav.steps", 0], "--covarnav: steps must be at least 1"),
        (["--unsc.energy", "None"], "exactly one of energy"),
        (["--forgt", 3], "no flag --forgt; did you mean --forget?"),
        (
            ["--energy", 0.9],
            "did you mean --covarnav.energy or --unsc.ener",
        ),
        (["--seed"], "--seed needs a value"),
        (["--unsc.targets", "x"], "--unsc.targets must be one of 'runner-up'"),
        (["--out", "file"], "file is there and is no run"),
        (["--out", "file/a"], "The folder file/a cannot be made"),
        (["--out", "."], "is there and is no run"),
        (["--config", "none.json"], "There is no file none.json"),
        (["--config"], "--config needs a value"),
        (["--config=file"], "file is no JSON"),
    ],
)
def test_bad_flags_are_refused_before_any_compute(
    tmp_path, monkeypatch, capsys, no_compute, flags, sentence
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a run")
    assert cli("run", *flags) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert_in_words(sentence, shown.err)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def assert_in_words(sentence, text):
    """Whatever the line breaks and frames that a terminal needs."""
    words = " ".join(text.replace("│", " ").split())
    assert re.search(sentence, words), words


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({"seed": "zero"}, "seed must be an integer; it is 'zero'"),
        ({"learning_rates": "all"}, "learning_rates must be a list"),
        ({"covarnav": {"energy": "high"}}, "covarnav.energy must be a number or null"),
        ({"covarnav": {"prior": {"l2": None}}}, "covarnav.prior.l2 must be a number"),
        ({"covarnav": {"enrgy": 0.9}}, "There is no covarnav.enrgy; there are: .*ener"),
        ({"unsc": {"targets": "x"}}, "unsc.targets must be one of 'runner-up'"),
        ({"recipe": {"momentum": 2}}, "momentum must be in"),
        ({"method": ["unsc"]}, "There is no method; there are: .*methods"),
        ([], "must hold a JSON object"),
    ],
)
def test_bad_configurations_are_refused(tmp_path, capsys, no_compute, stored, sentence):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(stored))
    assert cli("run", "--config", config, "--out", tmp_path / "a") == 2
    error = capsys.readouterr().err
    assert str(config) in error
    assert_in_words(sentence, error)
    assert not (tmp_path / "a.partial").exists()


def test_flags_come_before_a_stored_configuration(tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"forget": [5], "unsc": {"energy": 0.5}, "seed": 4}))
    assert cli("run", "--config", config, "--seed", 6, "--help-all") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the classes to forget. (default: 5)" in shown
    assert "(default: 0.5)" in shown
    assert read_config(config).seed == 4


def shown(capsys, *flags):
    """A help text, and what it says of each flag."""
    assert cli(*flags) == 0
    text = capsys.readouterr().out
    entries, entry = {}, ""
    for line in text.splitlines():
        if match := re.match(r"  --([\w.\[\]-]+)", line):
            entry = match[1].replace("no-", "")
        entries[entry] = f"{entries.get(entry, '')} {line.strip()}"
    return text, entries


def test_all_help_shows_every_knob_with_its_default_and_its_meaning(capsys):
    _, entries = shown(capsys, "run", "--help-all")

    def knobs(record, prefix=""):
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            flag = prefix + field.name.replace("_", "-")
            if dataclasses.is_dataclass(value):
                yield from knobs(value, f"{flag}.")
            else:
                yield flag, value

    every = dict(knobs(Run()))
    assert {"covarnav.prior.feature", "recipe.epochs", "forget"} < set(every)
    # Of a method that is not asked for, the settings have no effect.
    assert every.keys() == entries.keys() - {""}
    for flag, default in every.items():
        text = entries[flag]
        assert len(text.split()) > 3, f"{flag} does not say what it is"
        if default is True:
            assert "turns off, which is on by default" in text
        elif default is not False and default is not None and default != ():
            words = (
                f"{x:g}" if isinstance(x, float) else str(x)
                for x in np.atleast_1d(default)
            )
            assert f"(default: {' '.join(words)})" in text, flag


def test_all_help_leaves_out_methods_that_are_not_asked_for(capsys):
    _, entries = shown(capsys, "run", "--methods", "unsc", "--help-all")
    assert "unsc.energy" in entries
    assert not any(name.startswith("covarnav.") for name in entries)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_two_screens_and_begins_with_examples(
    name, width, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", str(width))
    for flag in ("--help", "--help-all"):
        text, _ = shown(capsys, name, flag)
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        assert "None" not in text
        assert lines[4] == "examples:"
        for example in lines[5:7]:
            program, command, *flags = example.split()
            assert (program, command) == ("jaxunlearn", name)
            assert parse(name, COMMANDS[name], flags)
        if flag == "--help":
            assert len(lines) <= 2 * 45


def test_the_command_line_describes_itself(capsys):
    assert cli("--version") == 0
    assert capsys.readouterr().out == f"jaxunlearn {version('jaxunlearn')}\n"
    for flags in ((), ("--help",)):
        assert cli(*flags) == 0
        printed = capsys.readouterr().out
        assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert cli("rn") == 2
    assert "no command rn; did you mean run?" in capsys.readouterr().err
    assert cli("run", "digits") == 2
    assert "jaxunlearn run takes no 'digits'" in capsys.readouterr().err
    assert cli("unlearn", "--forget", 3) == 2
    sentence = "jaxunlearn unlearn needs --checkpoint FILE, --out FILE."
    assert sentence in capsys.readouterr().err


def test_a_new_method_has_its_flags(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Method:
        """A method.

        Attributes:
          damping: how much.
          rank: of what.
          anything: no flag can give it.
        """

        damping: float = 0.5
        rank: int | None = None
        anything: object = None

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Settings(Command):
        """A command."""

        new: Method = Method()

    found = parse("new", Settings, ["--new.damping", "0.1", "--new.rank", "3"])
    assert found.new == Method(damping=0.1, rank=3)
    assert parse("new", Settings, ["--new.rank", "None"]).new == Method()
    with pytest.raises(ValueError, match="no flag --new.anything"):
        parse("new", Settings, ["--new.anything", "1"])


@pytest.fixture
def programs(monkeypatch):
    """Asks for the compilation cache; gives its folder. JAX's settings are put back."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAXUNLEARN_COMPILATION_CACHE")
    jax.config.update("jax_compilation_cache_dir", None)

    def ask():
        keep_programs(consoles()[1])
        return jax.config.jax_compilation_cache_dir

    yield ask
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_where_the_user_keeps_what_can_go(
    programs, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert programs() == str(tmp_path / "cache" / "jaxunlearn")
    # Another place that JAX was told of stays, and so does its least time.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 2.0)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "2")
    assert programs() == str(tmp_path / "mine")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 2
    assert (tmp_path / "mine").is_dir()
    assert capsys.readouterr().err == ""


def test_programs_are_not_kept_where_that_is_switched_off(programs, monkeypatch):
    monkeypatch.setenv("JAXUNLEARN_COMPILATION_CACHE", "off")
    assert programs() is None
    monkeypatch.setenv("JAXUNLEARN_COMPILATION_CACHE", "no")
    with pytest.raises(ValueError, match='must be "on" or "off"; it is \'no\''):
        programs()


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_fail(
    programs, monkeypatch, tmp_path, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert programs() is None
    said = capsys.readouterr().err
    assert said.startswith("Compiled programs are not kept")
    assert f"({tmp_path / 'file' / 'jaxunlearn'}: Not a directory)" in said


def test_every_method_can_be_asked_for():
    for name in methods.by_name:
        assert isinstance(Run().settings_of(name), methods.by_name[name])


class Folders:
    """Run folders without any compute."""

    def __init__(self, place):
        self.out = place / "a"
        self.partial = place / "a.partial"

    def open(self, *, overwrite=False, **settings):
        folder = OutputFolder(
            self.out,
            Run(**settings).to_dict(),
            kind=RUN,
            resume=True,
            overwrite=overwrite,
        )
        return folder.__enter__()

    def done(self, **settings):
        folder = self.open(**settings)
        folder.write_json("metrics.json", {})
        folder.finish()


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


def test_an_unfinished_run_of_other_settings_is_named(folders):
    folders.open(seed=1)
    assert folders.open(seed=1).resumed
    with pytest.raises(
        ValueError, match=r"a.partial holds .* other settings, .* seed \(1 there, 2"
    ):
        folders.open(seed=2)
    assert folders.open(seed=1).resumed
    assert not folders.open(seed=2, overwrite=True).resumed
    assert folders.open(seed=2, overwrite=True).resumed


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_an_unfinished_run_with_a_broken_request_is_refused(folders, text):
    folders.open()
    (folders.partial / "request.json").write_text(text)
    with pytest.raises(ValueError, match=r"request.json .* cannot be taken up"):
        folders.open()
    assert not folders.open(overwrite=True).resumed


def test_a_run_killed_at_its_very_start_is_begun_anew(folders):
    folders.partial.mkdir()
    (folders.partial / ".request-7.json").write_text("{")
    assert not folders.open().resumed
    assert folders.open().resumed
    shutil.rmtree(folders.partial / "pieces", ignore_errors=True)
    assert folders.open().resumed


def test_a_folder_that_is_no_unfinished_run_is_left_alone(folders):
    folders.partial.mkdir()
    (folders.partial / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="a.partial .* is no unfinished run"):
            folders.open(overwrite=overwrite)
    assert (folders.partial / "thesis.txt").read_text() == "mine"
    shutil.rmtree(folders.partial)
    folders.partial.write_text("mine")
    with pytest.raises(ValueError, match="is no unfinished run"):
        folders.open(overwrite=True)


def test_a_training_is_no_run_to_be_replaced(folders):
    folders.out.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (folders.out / name).write_text("{}")
    with pytest.raises(ValueError, match="is there and is no run"):
        folders.open(overwrite=True)


def test_a_run_is_replaced_only_by_a_complete_one(folders):
    folders.done(seed=1)
    with pytest.raises(ValueError, match="already holds a run"):
        folders.open(seed=2)
    before = (folders.out / "metrics.json").stat().st_ino
    # Left over from a kill just after an earlier replacement.
    shutil.copytree(folders.out, folders.out.with_name(".a.replaced"))
    folder = folders.open(seed=2, overwrite=True)
    assert (folders.out / "metrics.json").stat().st_ino == before
    folder.write_json("metrics.json", "new")
    folder.finish()
    assert json.loads((folders.out / "metrics.json").read_text()) == "new"
    assert [p.name for p in folders.out.parent.iterdir()] == ["a"]


def test_a_kill_between_two_names_loses_nothing(folders, monkeypatch):
    folders.done(seed=1)
    folder = folders.open(seed=2, overwrite=True)
    folder.write_json("metrics.json", "new")
    rename = Path.rename

    def killed(self, target):
        if self == folders.partial:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.finish()
    assert not folders.out.exists()
    again = folders.open(seed=2, overwrite=True)
    assert again.resumed
    again.finish()
    assert json.loads((folders.out / "metrics.json").read_text()) == "new"
    assert [p.name for p in folders.out.parent.iterdir()] == ["a"]


@pytest.mark.long
def test_unlearning_a_saved_classifier_does_what_the_run_does(finished, tmp_path):
    out = tmp_path / "new" / "a.safetensors"
    flags = ("--checkpoint", finished.file("original"), "--method", "unprojected")
    assert cli("unlearn", *flags, "--forget", 3, *STEPS, *RATES, "--out", out) == 0
    found, card = load_classifier(out)
    wanted, whole = load_classifier(finished.file("unprojected"))
    assert card == whole
    assert_equal(found, wanted)


@pytest.mark.long
def test_a_script_gets_what_the_run_gets(finished):
    original, _ = load_classifier(finished.file("original"))
    forget, retain = split_by_class(load("digits", "train", seed=0), [3])
    method = read_config(finished.out / "config.json").unprojected
    chosen = metrics(finished.out)["classifiers"]["unprojected"]["tuned"]
    method = dataclasses.replace(method, **chosen)
    task = Task(forget, retain, [3], num_classes=10)
    found = method(original, task, key=keys(0)[1]).classifier
    assert_equal(found, load_classifier(finished.file("unprojected"))[0])


def assert_equal(found, wanted):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.long
def test_a_second_request_adds_to_the_first(finished, tmp_path, monkeypatch, capsys):
    seen = []

    def forget(method, classifier, task, **given):
        seen.append(task)
        return Result(classifier, Trace(tuned={"learning_rate": 0.1}))

    monkeypatch.setattr("jaxunlearn.cli.unlearn.forget_task", forget)
    out = tmp_path / "a.safetensors"
    flags = ("--checkpoint", finished.file("unsc"), "--method", "covarnav")
    assert cli("unlearn", *flags, "--forget", 5, "--out", out) == 0
    # What has been forgotten before is neither protected nor a new label.
    assert seen[0].forget_classes == (3, 5)
    assert set(seen[0].forget.labels) == {5}
    assert set(seen[0].retain.labels) == set(RETAINED) - {5}
    assert "classes: 3, 5" in capsys.readouterr().out
    assert load_classifier(out)[1].forgotten == (3, 5)
    assert cli("unlearn", *flags, "--forget", *RETAINED, "--out", "b.safetensors") == 2
    assert "names all 10 classes" in capsys.readouterr().err


@pytest.mark.long
def test_evaluate_repeats_the_metrics_in_strict_json(finished, capsys):
    records = metrics(finished.out)["classifiers"]
    assert cli("evaluate", "--checkpoint", finished.file("unsc"), "--json") == 0
    assert strict(capsys.readouterr().out) == records["unsc"]["test"]
    flags = ("--checkpoint", finished.file("original"), "--split", "validation")
    assert cli("evaluate", *flags, "--forget", 3, "--json") == 0
    assert strict(capsys.readouterr().out) == records["original"]["validation"]
    assert cli("evaluate", *flags, "--json") == 0
    assert strict(capsys.readouterr().out)["forgotten"] is None
    assert cli("evaluate", *flags) == 0
    assert capsys.readouterr().out.startswith("retained")


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--method", "x"], "--method must be one of 'covarnav', .*; it is 'x'"),
        (["--method", "retrain"], "--method must be one of .*; it is 'retrain'"),
        (["--forget", 10], "class 10, which does not exist"),
        (["--forget"], "--forget names no class"),
        (["--dataset", "x"], "no data set 'x'; there are: .*digits"),
        (["--seed", -1], "--seed must be"),
        (["--learning-rates", 0], "positive and finite"),
        (["--covarnav.learning-rate", 0.1], "has no effect"),
        (["--out", "a.npz"], "must end in .safetensors"),
        (["--out", "there.safetensors"], "is there: choose another file"),
        (["--out", "file/a.safetensors"], "file is a file"),
        (["--checkpoint", "none.safetensors"], "There is no file none"),
        (["--checkpoint", "there.safetensors"], "is no whole safetensors file"),
    ],
)
def test_bad_requests_are_refused_before_any_compute(
    finished, tmp_path, monkeypatch, capsys, flags, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxunlearn.cli.unlearn.forget_task", pytest.fail)
    for name in ("file", "there.safetensors"):
        Path(name).write_text("")
    usual = ["--checkpoint", finished.file("original"), "--forget", 3]
    assert cli("unlearn", *usual, "--out", "a.safetensors", *flags) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert_in_words(sentence, shown.err)
    assert not Path("a.safetensors").exists()


@pytest.mark.long
def test_bad_evaluations_are_refused(finished, capsys):
    for flags, sentence in (
        (["--forget", 10], "class 10, which does not exist"),
        (["--split", "x"], "--split must be one of 'train', .*; it is 'x'"),
        (["--dataset", "x"], "no data set 'x'"),
    ):
        flags = ["--checkpoint", finished.file("original"), *flags]
        assert cli("evaluate", *flags) == 2
        assert_in_words(sentence, capsys.readouterr().err)


@pytest.mark.long
def test_the_headline_holds_on_the_digits(tmp_path):
    flags = ("--no-judge-proxies", "--methods", "covarnav", "unsc", "unprojected")
    out = finish(tmp_path / "headline", *flags).out
    records = metrics(out)["classifiers"]
    kept = {title: record["test"]["retained"] for title, record in records.items()}
    assert kept["original"] >= 95
    unprojected = records["unprojected"]["retained_logit_change"]
    for title in ("covarnav", "unsc"):
        assert records[title]["test"]["forgotten"] <= 15
        assert kept[title] >= kept["original"] - 3
        assert records[title]["retained_logit_change"] < 0.7 * unprojected
