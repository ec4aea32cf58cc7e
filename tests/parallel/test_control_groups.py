"""Limits of memory that containers and batch systems set, on made-up file systems."""

import pytest

from jaxunlearn import parallel
from jaxunlearn.parallel import hardware
from jaxunlearn.parallel.control_groups import memory_limits


@pytest.fixture
def machine(tmp_path):
    """A file system, made of texts by path."""

    def make(texts):
        for path, text in texts.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return make


def test_every_group_around_the_process_counts(machine):
    root = machine(
        {
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/memory.max": "1000\n",
            "sys/fs/cgroup/job/memory.current": "700\n",
            "sys/fs/cgroup/job/memory.stat": "anon 400\ninactive_file 250\n",
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/step/memory.current": "10\n",
            "sys/fs/cgroup/job/step/memory.stat": "anon 10\n",
        }
    )
    assert memory_limits(root) == [(1000, 550)]


def test_a_container_sees_its_limit_at_the_top(machine):
    root = machine(
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "1000\n",
            "sys/fs/cgroup/memory.current": "1001\n",
            "sys/fs/cgroup/memory.stat": "anon 1001\n",
        }
    )
    assert memory_limits(root) == [(1000, 0)]


def test_the_first_version_of_control_groups(machine):
    root = machine(
        {
            "proc/self/cgroup": "5:devices:/\n4:memory:/slurm\n0::/\n",
            "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": "300\n",
            "sys/fs/cgroup/memory/slurm/memory.usage_in_bytes": "120\n",
            "sys/fs/cgroup/memory/slurm/memory.stat": "total_inactive_file 20\n",
        }
    )
    assert memory_limits(root) == [(300, 200)]


def test_no_groups_no_limits(tmp_path):
    assert memory_limits(tmp_path) == []


def test_the_tightest_limit_holds(monkeypatch):
    whole, free = parallel.memory_limit(), parallel.free_memory()
    groups = [(6000, 500), (4000, 1000)]
    monkeypatch.setattr(hardware, "memory_limits", lambda: groups)
    assert (parallel.memory_limit(), parallel.free_memory()) == (4000, 500)
    assert (parallel.memory_limit(2), parallel.free_memory(2)) == (2000, 250)
    monkeypatch.setattr(hardware, "memory_limits", lambda: [(2**60, 2**60)])
    assert parallel.memory_limit() >= whole
    assert parallel.free_memory() > free // 2
