"""What a person types amiss, what shells complete, and what is loaded meanwhile."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import jaxunlearn
from jaxunlearn.cli import main
from jaxunlearn.cli.flags import parse
from jaxunlearn.cli.processes import sentence_of
from jaxunlearn.cli.run import Run

ROOT = Path(jaxunlearn.__file__).parents[1]


def refused(capsys, *flags):
    assert main([str(flag) for flag in flags]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["run", "--lr"], "--learning-rates or --covarnav.learning-rate"),
        (["train", "--lr"], "--recipe.learning-rate?"),
        (["run", "--epochs"], "--recipe.epochs?"),
        (["run", "--epoch"], "--recipe.epochs?"),
        (["run", "--seeds"], "--seed?"),
        (["run", "--class"], "--forget?"),
        (["run", "--classes"], "--forget?"),
        (["run", "--arch"], "--model?"),
        (["run", "--data"], "--dataset?"),
        (["run", "--output"], "--out?"),
        (["run", "--force"], "--overwrite?"),
        (["run", "--method"], "--methods?"),
        (["sweep", "--methods"], "--method?"),
        (["unlearn", "--ckpt"], "--checkpoint?"),
        (["invert", "--forget"], "--classes?"),
    ],
)
def test_a_plausible_word_is_answered_with_the_right_flag(capsys, words, flag):
    assert f"did you mean {flag}" in refused(capsys, *words, 1)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["run", "--out", ""], "--out needs a value; it is empty"),
        (["run", "--dataset", " "], "--dataset needs a value; it is empty"),
        (["run", "--seed", "one"], "--seed must be an integer; it is 'one'"),
        (["run", "--seed", 2**70], "--seed must be 0 or more and less than 2**32"),
        (["run", "--size", 2**70, 8], "size"),
        (["run", "--size", 10**6, 10**6], "memory"),
        (["run", "--options", f"width={2**70}"], "width"),
        (["run", "--options", "width=99999999"], "width"),
        (["run", "--options", f"width={'[' * 10**5}"], "width"),
        (["run", "--unsc.steps", "many"], "--unsc.steps must be an integer"),
        (["plan", "--dataset", "digits", "--steps", "-1"], "steps must be at least 1"),
        (["plan", "--dataset", "digits", "--num-classes", 2**70], "classes must be"),
        (
            ["plan", "--image-shape", 10**6, 10**6, 3, "--num-classes", 9],
            "takes 12 TB, and",
        ),
        (["evaluate", "--checkpoint", "a.safetensors", "--json=1"], "takes no value"),
    ],
)
def test_absurd_values_are_refused_in_a_sentence(capsys, flags, sentence, tmp_path):
    flags = [*flags, *(["--out", tmp_path / "a"] if flags[0] == "run" else [])]
    if "" in flags:
        flags = flags[:3]
    said = refused(capsys, *flags)
    assert sentence in said
    assert len(said) <= 1000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.json", "a.partial/request.json"])
def test_deeply_nested_records_are_refused(capsys, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"a":' * 10**5)
    config = ("--config", path) if name == "config.json" else ()
    assert "deep" in refused(capsys, "run", "--out", tmp_path / "a", *config)


def test_too_little_memory_is_a_sentence():
    assert "not enough memory (of the host)" in sentence_of(MemoryError("of the host"))
    device = RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    assert "take a smaller network" in sentence_of(device)
    assert sentence_of(RuntimeError("a bug")) is None
    assert len(sentence_of(ValueError("x" * 5000))) == 1000


def test_a_plan_that_does_not_fit_says_which_batch_would(capsys, monkeypatch):
    monkeypatch.setattr("jaxunlearn.parallel.free_memory", lambda *_: 2 * 10**6)
    assert main(["plan", "--dataset", "digits"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "inversion needs" in said
    assert "2 MB are free: --inversion-batch-size" in said


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_flags(capsys):
    assert main(["--completion"]) == 0
    script = capsys.readouterr().out

    def completed(*words):
        ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        code = f'{script}\n{ask}; _jaxunlearn; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(
            ["bash", "-c", code], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert completed("jaxunlearn", "sw") == ["sweep"]
    assert completed("jaxunlearn", "run", "--forget-r") == ["--forget-random"]
    assert completed("jaxunlearn", "run", "--unsc.en") == ["--unsc.energy"]


def test_dir_shows_the_public_names_only():
    names = set(dir(jaxunlearn))
    packages = {"augmentation", "datasets", "methods", "metrics", "models", "training"}
    assert packages | {"freeze", "unlearn", "CovarNav", "__version__"} < names
    modules = {n for n in names if type(getattr(jaxunlearn, n)) is type(sys)}
    assert modules == packages
    assert {name for name in names if name[0] == "_"} == {"__version__"}
    assert jaxunlearn.__version__ == version("jaxunlearn")
    with pytest.raises(AttributeError, match="no attribute 'frezee'"):
        jaxunlearn.frezee  # noqa: B018


def loaded_by(code, folder):
    """Which of the heavy packages a Python process has loaded at its end."""
    heavy = ("tensorflow", "tensorflow_datasets", "grain", "torch")
    end = (
        f"import sys, json; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{end}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_import_loads_no_tensorflow(tmp_path):
    assert loaded_by("import jaxunlearn", tmp_path) == []


@pytest.mark.long
def test_a_run_on_digits_loads_no_tensorflow(tmp_path):
    flags = ["run", "--methods", "unprojected", "--options", "width=4", "--out", "a"]
    flags += ["--recipe.epochs", "1", "--unprojected.steps", "2", "--learning-rates"]
    code = f"from jaxunlearn.cli import main\nassert main({flags!r}) == 0"
    assert loaded_by(code, tmp_path) == []


def test_numbers_may_begin_with_the_point():
    flags = ["--learning-rates", ".1", "0.5,.02", "--unsc.energy", ".9"]
    settings = parse("run", Run, flags)
    assert settings.learning_rates == (0.1, 0.5, 0.02)
    assert settings.unsc.energy == 0.9
