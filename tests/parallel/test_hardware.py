"""What devices and their host are said to hold."""

import os
import sys
from types import SimpleNamespace

from jaxunlearn import parallel
from jaxunlearn.parallel import hardware


def test_simulated_devices_share_the_free_memory_of_the_host(monkeypatch):
    free = parallel.free_host_memory()
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**26 < free <= whole
    monkeypatch.setattr(hardware, "free_host_memory", lambda: 1000)
    assert parallel.free_memory(2) == 500


def test_a_device_says_what_it_holds_and_what_is_free(monkeypatch):
    stats = {"bytes_limit": 1000, "bytes_in_use": 300}
    device = SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(hardware.jax, "local_devices", lambda: [device])
    assert parallel.free_memory(4) == 700


def test_a_host_that_does_not_say_is_never_too_small(monkeypatch):
    monkeypatch.setattr(hardware, "Path", lambda _: SimpleNamespace(read_text=str))
    assert parallel.free_host_memory() > 2**26  # All there is.
    monkeypatch.delattr(os, "sysconf")
    assert parallel.free_host_memory() == sys.maxsize
