"""Children that are killed again and again until they are done."""

import itertools
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import jaxunlearn
from jaxunlearn.training.checkpoints import Checkpoints


def read_metrics(path):
    """The records of a `MetricLog`; a torn last line is left out."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def environment(cache):
    """Of a child: one device, and programs that need not be compiled again."""
    one = "--xla_force_host_platform_device_count=1"
    return os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {one}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(jaxunlearn.__file__).parents[1]),
    }


def kill_at(command, folder, env, moment, by=signal.SIGKILL):
    """Start a child and kill it: `moment()` is asked until it says so."""
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        while child.poll() is None and not moment():
            time.sleep(0.002)
        alive = child.poll() is None
        child.send_signal(by)
        _, errors = child.communicate()
    if not alive:
        raise AssertionError(errors.decode())
    assert child.returncode == -by
    assert by == signal.SIGKILL or errors.decode().rstrip().endswith(
        "KeyboardInterrupt"
    )


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def moments(folder, draw):
    """Two kills amid the steps, one amid the writing of a checkpoint."""

    def after_steps(count):
        # Lines only grow again once a resumed training has cut off what it repeats.
        start, target = lines(folder), None

        def reached():
            nonlocal target
            now = lines(folder)
            if target is None and now != start:
                target = now + count
            return target is not None and now >= target

        return reached

    def writing():
        there = folder / "checkpoints"
        names = [p.name for p in there.iterdir()] if there.is_dir() else []
        return any(name.startswith(".") for name in names)

    yield after_steps(draw.randrange(15, 40))
    yield writing
    yield after_steps(draw.randrange(1, 40))


def killed_until_done(command, folder, env, every, draw, kills=3, by=signal.SIGKILL):
    """Kill it several times; each time it goes on from the last whole checkpoint."""
    resumed_at = []
    for moment in itertools.islice(moments(folder, draw), kills):
        kill_at(command, folder, env, moment, by)
        last = lines(folder)
        newest = max(Checkpoints(folder / "checkpoints").steps(), default=0)
        # All that was logged after the checkpoint is repeated, and at most N steps.
        assert newest <= last <= newest + every
        resumed_at.append(newest)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(len(records)))
    assert all(step > 0 for step in resumed_at)
    return done
