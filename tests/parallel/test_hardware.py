"""What devices and their host are said to hold."""

import os
import sys
from types import SimpleNamespace

from jaxunlearn import parallel
from jaxunlearn.parallel import hardware


def test_simulated_devices_share_the_memory_of_the_host():
    whole = parallel.host_memory()
    assert 2**28 < whole < sys.maxsize
    assert parallel.memory_limit(2) == parallel.free_memory(2) == whole // 2


def test_a_device_says_what_it_holds_and_what_is_free(monkeypatch):
    stats = {"bytes_limit": 1000, "bytes_in_use": 300}
    device = SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(hardware.jax, "local_devices", lambda: [device])
    assert (parallel.memory_limit(4), parallel.free_memory(4)) == (1000, 700)


def test_a_host_that_does_not_say_is_never_too_small(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert parallel.host_memory() == sys.maxsize
