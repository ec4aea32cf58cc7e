"""Several processes: the same results, one that dies, and what is said of it."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxunlearn
from jaxunlearn.cli import main, processes
from jaxunlearn.cli.distributed import FAILED, FOLLOWED, Several, Worker, decided
from jaxunlearn.models.files import load_classifier

TINY = ("--options", "width=4", "--recipe.epochs", "2", "--learning-rates", "0.01")
TINY += ("--methods", "unsc", "retrain", "--unsc.steps", "3")
TITLES = ("original", "unsc", "retrained")
SEVERAL = ("--processes", "2", "--heartbeat-timeout", "10")


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


def run_on_two(out, environment):
    return subprocess.Popen(
        [sys.executable, "-m", "jaxunlearn", "run", *TINY, *SEVERAL, "--out", out],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid):
    """Those that a process has started, first to last."""
    return sorted(
        map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    )


@pytest.mark.skipif(sys.platform != "linux", reason="looks up processes in /proc")
def test_two_processes_give_the_run_of_one_though_one_of_them_is_killed(
    alone, environment, tmp_path
):
    out, partial = tmp_path / "two", tmp_path / "two.partial"
    first = run_on_two(out, environment)
    while not (partial / "pieces" / "original.json").exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.02)
    workers = children(first.pid)
    os.kill(workers[1], signal.SIGKILL)
    printed, said = first.communicate(timeout=60)
    assert first.returncode == 2
    assert printed == ""
    assert said.splitlines()[-1] == (
        "jaxunlearn: process 1 of 2 was killed (signal 9); the others were stopped. "
        f"What is done lies in {partial}; the same command takes it up."
    )
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    done = (partial / "original.safetensors").stat()

    printed, said = (second := run_on_two(out, environment)).communicate()
    assert second.returncode == 0, said
    assert said.count("Taking up the unfinished run") == 1
    # One table, and nothing of what connects the processes.
    assert printed.startswith("digits, smallcnn, forget 3, seed 0")
    assert printed.count("Written to") == 1
    again = (out / "original.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (done.st_ino, done.st_mtime_ns)
    assert_same_run(alone, out)

    # What process 0 refuses ends the others too, with one sentence.
    printed, said = (third := run_on_two(out, environment)).communicate()
    assert third.returncode == 2
    assert printed == ""
    assert re.fullmatch(r"jaxunlearn: .* already holds a run: .*\n", said), said


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


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Starts processes that run a script in place of the command."""

    def start(script, **settings):
        command = [sys.executable, "-c", script]
        monkeypatch.setattr(processes, "_command", lambda arguments: command)
        monkeypatch.setattr(processes, "_ABORTING", 0.5)
        several = Several(**{"processes": 2, **settings})
        processes.start([], several, tmp_path / "run")

    return start


# In front of a script: what it is told, and a way to wait for its end.
PREAMBLE = """
import json, os, pathlib, signal, sys, time
joined, coordinator, count, index = json.loads(os.environ["JAXUNLEARN_WORKER"])
def last(): time.sleep(60)
"""


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            "last() if index else os.kill(os.getpid(), 9)",
            r"process 0 of 2 was killed \(signal 9\); the others were stopped\.",
        ),
        # What one that lives on has to say comes second.
        (
            "dying = pathlib.Path(joined).with_name('dying')\n"
            "if index: dying.touch(); os.kill(os.getpid(), 9)\n"
            "while not dying.exists(): time.sleep(0.01)\n"
            "time.sleep(1); sys.exit(2)",
            r"process 1 of 2 was killed \(signal 9\); the others were stopped\.",
        ),
        (
            "last() if not index else sys.exit('jaxunlearn: no disk.')",
            "process 1 of 2 ended with status 1; .* Its last words: jaxunlearn: no",
        ),
        (
            "if not index: last()\n"
            "print('jaxunlearn: no disk.', file=sys.stderr); sys.exit(2)",
            "process 1 of 2 failed; the others were stopped. It says: no disk.",
        ),
        (
            "if not index: last()\n1 / 0",
            "process 1 of 2 ended with status 1; .* Its last words: .*ZeroDivision",
        ),
        (
            "pathlib.Path(joined).touch()\nlast() if index else os.abort()",
            "process 1 of 2 gave no sign of life for 30 seconds; all were stopped.",
        ),
        ("sys.exit(4)", "a computation over all processes failed; most likely another"),
        ("os.abort()", "the processes did not find each other within 300 seconds"),
    ],
)
def test_the_first_process_to_die_is_named(started, tmp_path, script, sentence):
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "request.json").touch()
    with pytest.raises(ChildProcessError) as found:
        started(PREAMBLE + script)
    words = " ".join(str(found.value).split())
    assert re.match(sentence, words), words
    assert f"What is done lies in {tmp_path / 'run.partial'}; the same" in words


def test_what_process_0_has_said_is_not_said_again(started):
    with pytest.raises(SystemExit) as found:
        started(PREAMBLE + f"time.sleep(0.3 * (1 - index)); sys.exit({FAILED} + index)")
    assert found.value.code == FAILED == FOLLOWED - 1


def test_one_that_joins_others_tells_of_their_end(started):
    script = "pathlib.Path(joined).touch()\nos.abort()"
    with pytest.raises(ChildProcessError, match="another process ended, or gave no"):
        started(PREAMBLE + script, processes=1, distributed=True)


def test_all_is_well_if_all_are_done(started, tmp_path):
    started(PREAMBLE + f"pathlib.Path({str(tmp_path)!r}, str(index)).touch()")
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def test_no_process_is_left_when_the_first_is_interrupted(started, monkeypatch):
    seen = []

    def interrupted(children):
        seen.extend(children)
        assert all(child.status is None for child in children)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt, match="interrupted."):
        started("import time; time.sleep(60)")
    assert [child.status for child in seen] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--processes", 0], "--processes must be at least 1; it is 0"),
        (["--processes", 2, "--distributed"], "give one of them"),
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
        (["--processes", 2, "--methods", "x"], "no method 'x'"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_started(
    monkeypatch, capsys, flags, sentence
):
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
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
    from jaxunlearn.cli.settings import Run

    elsewhere = Run(distributed=True, heartbeat_timeout=7)
    assert elsewhere.plain() == Run().plain()


def test_a_process_by_itself_decides_for_itself(monkeypatch):
    monkeypatch.delenv("JAXUNLEARN_WORKER", raising=False)
    assert Worker.here() is None
    assert decided(lambda: [1]) == [1]
    with pytest.raises(OSError, match="no disk"):
        decided(lambda: (_ for _ in ()).throw(OSError("no disk")))
