"""Decompositions of different layers, spread over devices and processes."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import run_processes
from spectra import LAYOUTS, moment

from jaxunlearn import parallel
from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.subspace import merge_subspaces, subspaces
from jaxunlearn.parallel import spreading


def layers():
    return {
        name: moment(np.ones(layout.fan_in) / np.arange(1, layout.fan_in + 1), layout)
        for name, layout in LAYOUTS.items()
    }


def test_layers_are_spread_over_devices_the_largest_first():
    devices = jax.devices()[:3]
    begun = []

    def work(size, device):
        begun.append((size, device))
        with linalg.float64():
            return size, linalg.placed(np.eye(size), device).device

    sizes = [2, 5, 3, 4, 1]
    found = parallel.spread_over_devices(work, sizes, sizes, devices)
    assert [size for size, _ in found] == sizes
    assert found == [(size, dict(begun)[size]) for size in sizes]
    assert {device for _, device in begun} <= set(devices)
    assert max(size for size, _ in begun[:3]) == 5


def test_every_device_gives_the_same_subspaces(monkeypatch):
    tree = layers()
    one = [subspaces(tree, rank=2)]
    one.append(merge_subspaces(one * 2, energy=0.9))
    over_own = spreading.spread_over_devices

    def over_all(function, items, sizes):
        used, several = set(), threading.Event()

        def call(item, device):
            # The first device waits for another, which it might leave nothing to do.
            used.add(device)
            if len(used) > 1:
                several.set()
            assert several.wait(timeout=60)
            return function(item, device)

        return over_own(call, items, sizes, jax.devices())

    monkeypatch.setattr(spreading, "spread_over_devices", over_all)
    many = [subspaces(tree, rank=2)]
    many.append(merge_subspaces(many * 2, energy=0.9))
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert next(iter(jax.tree.leaves(many))).devices() == {jnp.ones(1).device}


def test_what_a_device_raises_is_raised_here():
    def work(item, device):
        if item == 3:
            msg = "three"
            raise ValueError(msg)
        return item

    with pytest.raises(ValueError, match="three"):
        parallel.spread_over_devices(work, [1, 2, 3], [1, 2, 3], jax.devices()[:2])


# Processes.


def decompose_and_save(index, folder):
    """One process's part."""
    mesh = parallel.global_mesh()
    made = []
    eigenpairs = linalg.eigenpairs

    def counted(matrix, device):
        made.append(len(matrix))
        return eigenpairs(matrix, device)

    linalg.eigenpairs = counted
    found = subspaces(layers(), energy=0.9, mesh=mesh)
    own = len(made)
    merged = merge_subspaces([found] * 3, energy=0.9, mesh=mesh)
    parallel.processes._BROADCAST = 8
    said = parallel.exchange(b"of process" * index, mesh)
    leaves = jax.tree.leaves((found, merged))
    np.savez(f"{folder}/{index}.npz", *leaves, said=np.array(said), own=own)


def test_processes_share_the_decompositions_and_have_the_same_bits(tmp_path):
    found = subspaces(layers(), energy=0.9)
    expected = jax.tree.leaves((found, merge_subspaces([found] * 3, energy=0.9)))
    run_processes("test_spreading:decompose_and_save", 3, str(tmp_path), devices=2)
    files = [np.load(tmp_path / f"{index}.npz") for index in range(3)]
    for number, leaf in enumerate(expected):
        for file in files:
            np.testing.assert_array_equal(file[f"arr_{number}"], leaf)
    whole = sum(layout.groups for layout in LAYOUTS.values())
    assert sum(int(file["own"]) for file in files) == whole
    assert all(file["own"] for file in files)
    said = [b"", b"of process", b"of processof process"]
    assert all(file["said"].tolist() == said for file in files)


def test_work_is_shared_out_evenly():
    sizes = np.random.default_rng(0).uniform(1, 2, 50).tolist()
    owners = spreading.shared_out(sizes, 4)
    loads = np.bincount(owners, weights=sizes)
    assert np.ptp(loads) < min(sizes)
    assert spreading.shared_out([3, 2, 2], 4) == [0, 1, 2]
