"""Several real processes on this machine, joined over loopback."""

import importlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax

import jaxunlearn


def run_processes(
    target: str, count: int, *arguments: str, devices: int = 1, timeout: float = 600
) -> list[str]:
    """Call `function(index, *arguments)` of "module:function" in each of them.

    Every process has `devices` simulated devices and has joined the others before the
    module, one of the tests, is imported. What each prints is returned. When one
    fails, or when time is up, all are killed.
    """
    command = [sys.executable, __file__, target, str(count), str(_free_port())]
    children = []
    try:
        for index in range(count):
            children.append(
                subprocess.Popen(
                    [*command, str(index), *arguments],
                    env=_environment(devices),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        _wait(children, time.monotonic() + timeout)
        said = [child.communicate()[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()
    return said


def _wait(children, until):
    """Until all are done, or one has failed."""
    while any(child.poll() is None for child in children):
        failed = [i for i, child in enumerate(children) if child.poll()]
        if failed or time.monotonic() > until:
            for child in children:
                child.kill()
            break
        time.sleep(0.02)
    if any(child.wait() for child in children):
        ends = [
            f"process {i} ended with {child.returncode}:\n{child.stdout.read()[-3000:]}"
            for i, child in enumerate(children)
        ]
        raise AssertionError("\n".join(ends))


def _environment(devices):
    # The last of equal flags counts; conftest.py asks for eight devices.
    flags = os.environ.get("XLA_FLAGS", "")
    return os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(jaxunlearn.__file__).parents[1]),
    }


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _child(target, count, port, index, *arguments):
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        int(count),
        int(index),
        cluster_detection_method="deactivate",
        initialization_timeout=60,
        heartbeat_timeout_seconds=30,
    )
    sys.path += map(str, Path(__file__).parent.glob("*/"))
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(int(index), *arguments)
    jax.distributed.shutdown()


if __name__ == "__main__":
    _child(*sys.argv[1:])
