"""Several processes: the same run, one that is killed, and what is refused."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxunlearn
from jaxunlearn.cli import main
from jaxunlearn.cli.run import Run
from jaxunlearn.models.files import load_classifier

pytestmark = pytest.mark.long

TINY = (
    "--no-audit",
    "--options",
    "width=4",
    "--recipe.epochs",
    "2",
    "--learning-rates",
    "0.01",
)
TINY += ("--no-audit", "--methods", "unsc", "retrain", "--unsc.steps", "3")
TITLES = ("original", "unsc", "retrained")


def cli(*flags):
    """The exit status."""
    try:
        return main([str(flag) for flag in flags])
    except SystemExit as exit:
        return exit.code


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        assert cli("run", *TINY, "--out", out) == 0, errors.getvalue()
    return out


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of two devices in each process, and programs that need not be compiled again."""
    two = "--xla_force_host_platform_device_count=2"
    return os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {two}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(jaxunlearn.__file__).parents[1]),
    }


def start(out, environment):
    """Two processes, the first of which listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ("--distributed", "--coordinator", address, "--process-count", "2")
    flags += ("--heartbeat-timeout", "10", "--out", out)
    command = [sys.executable, "-m", "jaxunlearn", "run", *TINY, *flags]
    return [
        subprocess.Popen(
            [*command, "--process-id", str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def finish(processes):
    """What each prints and says, in order."""
    try:
        return [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_two_processes_give_the_run_of_one_though_one_of_them_is_killed(
    alone, environment, tmp_path
):
    out, partial = tmp_path / "two", tmp_path / "two.partial"
    first = start(out, environment)
    while not (partial / "pieces" / "original.json").exists():
        assert first[0].poll() is None, first[0].stderr.read()
        time.sleep(0.02)
    first[1].kill()
    # JAX aborts the one that is left.
    (printed, _), _ = finish(first)
    assert first[0].returncode != 0
    assert printed == ""
    assert not out.exists()
    done = (partial / "original.safetensors").stat()

    (printed, said), (others, _) = finish(second := start(out, environment))
    assert [process.returncode for process in second] == [0, 0], said
    assert said.count("Taking up the unfinished run") == 1
    # One table, and nothing of what connects the processes.
    assert printed.startswith("digits, smallcnn, forget 3, seed 0")
    assert printed.count("Written to") == 1
    assert others == ""
    again = (out / "original.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (done.st_ino, done.st_mtime_ns)
    assert_same_run(alone, out)

    # All refuse alike what they see on their disk, if JAX does not abort one before
    # it comes to say so.
    (printed, said), (others, _) = finish(third := start(out, environment))
    assert printed == others == ""
    assert "already holds a run" in said.splitlines()[-1]
    assert third[0].returncode == 2
    assert third[1].returncode != 0


def assert_same_run(alone, other):
    one, two = (
        json.loads((out / "metrics.json").read_text()) for out in (alone, other)
    )
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["devices"] == 4
    assert list(two["classifiers"]) == list(TITLES)
    for title in TITLES:
        for split in ("train", "validation", "test"):
            found, wanted = (run["classifiers"][title][split] for run in (two, one))
            # A logit that is nearly tied may fall either way.
            assert (
                np.abs(np.subtract(found["confusion"], wanted["confusion"])).sum() <= 2
            )
        trees = (
            load_classifier(out / f"{title}.safetensors")[0] for out in (alone, other)
        )
        for x, y in zip(*(jax.tree.leaves(t.params) for t in trees), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    files = {path.name for path in alone.iterdir()}
    assert {path.name for path in other.iterdir()} == files


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--heartbeat-timeout", 1], "--heartbeat-timeout must be at least 5"),
        (["--connect-timeout", 0], "--connect-timeout must be at least 1"),
        (["--process-id", 0], "--process-id without the others"),
        (["--distributed", "--coordinator", "a:1"], "--coordinator without the others"),
        (
            ["--distributed", "--coordinator", "a:1", "--process-id", 2]
            + ["--process-count", 2],
            "--process-id must be 0 to 1 for --process-count 2; it is 2",
        ),
        (
            ["--distributed", "--coordinator", "a", "--process-id", 0]
            + ["--process-count", 2],
            "--coordinator must be HOST:PORT, such as 10.0.0.1:1234; it is 'a'",
        ),
        (["--distributed", "--methods", "x"], "it is 'x'"),
    ],
)
def test_bad_flags_are_refused_before_any_process_is_joined(
    monkeypatch, capsys, flags, sentence
):
    monkeypatch.setattr(jax.distributed, "initialize", pytest.fail)
    assert cli("run", *flags) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_coordinator_that_nobody_finds_is_named(tmp_path, environment):
    flags = ("--distributed", "--coordinator", "127.0.0.1:1", "--process-id", "1")
    flags += ("--process-count", "2", "--connect-timeout", "1", "--out", tmp_path / "a")
    done = subprocess.run(
        [sys.executable, "-m", "jaxunlearn", "run", *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    said = "jaxunlearn: Nobody answered at the coordinator's address 127.0.0.1:1"
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_where_a_run_is_made_is_no_part_of_what_it_is():
    elsewhere = Run(distributed=True, heartbeat_timeout=7)
    assert elsewhere.to_dict() == Run().to_dict()
