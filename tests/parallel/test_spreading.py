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


def use(monkeypatch, devices):
    monkeypatch.setattr(spreading, "linear_algebra_devices", lambda: devices)


def test_layers_are_spread_over_devices_the_largest_first(monkeypatch):
    devices = jax.devices()[:3]
    begun = []

    def work(size, device):
        begun.append((size, device))
        with linalg.float64():
            return size, linalg.placed(np.eye(size), device).device

    sizes = [2, 5, 3, 4, 1]
    use(monkeypatch, devices)
    done = parallel.spread(work, sizes, sizes)
    assert [size for size, _ in done] == sizes
    assert done == [(size, dict(begun)[size]) for size in sizes]
    assert {device for _, device in begun} <= set(devices)
    assert max(size for size, _ in begun[:3]) == 5


def test_every_device_gives_the_same_subspaces(monkeypatch):
    tree = layers()
    one = [subspaces(tree, rank=2)]
    one.append(merge_subspaces(one * 2, energy=0.9))
    spread = parallel.spread

    def over_all(function, items, sizes, mesh):
        used, several = set(), threading.Event()

        def call(item, device):
            # The first device waits for another, which it might leave nothing to do.
            used.add(device)
            if len(used) > 1:
                several.set()
            assert several.wait(timeout=60)
            return function(item, device)

        return spread(call, items, sizes, mesh)

    use(monkeypatch, jax.devices())
    monkeypatch.setattr(parallel, "spread", over_all)
    many = [subspaces(tree, rank=2)]
    many.append(merge_subspaces(many * 2, energy=0.9))
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert next(iter(jax.tree.leaves(many))).devices() == {jnp.ones(1).device}


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_device_raises_is_raised_here(count, monkeypatch):
    def work(item, device):
        if item == 3:
            msg = "three"
            raise ValueError(msg)
        return item

    use(monkeypatch, jax.devices()[:count])
    with pytest.raises(ValueError, match="three"):
        parallel.spread(work, [1, 2, 3], [1, 2, 3])


# Processes.


def decompose_and_save(index, folder):
    """One process's part; hosts are made to differ where they may."""
    mesh = parallel.global_mesh()
    eigenpairs = linalg.eigenpairs

    def inexact(matrix, device):
        values, vectors = eigenpairs(matrix, device)
        return values * (1 + index * 1e-6), vectors * (1 + index * 1e-6)

    linalg.eigenpairs = inexact
    tree = subspaces(layers(), energy=0.9, mesh=mesh)
    merged = merge_subspaces([tree] * 3, energy=0.9, mesh=mesh)
    # Ranks depend on data, so that shapes may differ too.
    ragged = parallel.from_first(
        [np.arange(3.0 - index), np.zeros((0, 2)), np.ones(())]
    )
    np.savez(f"{folder}/{index}.npz", *jax.tree.leaves((tree, merged, ragged)))


@pytest.mark.long
def test_processes_have_the_bits_of_the_first(tmp_path):
    tree = subspaces(layers(), energy=0.9)
    expected = [tree, merge_subspaces([tree] * 3, energy=0.9)]
    expected += [np.arange(3.0), np.zeros((0, 2)), np.ones(())]
    run_processes("test_spreading:decompose_and_save", 2, str(tmp_path), devices=2)
    for index in range(2):
        file = np.load(tmp_path / f"{index}.npz")
        for number, leaf in enumerate(jax.tree.leaves(expected)):
            np.testing.assert_array_equal(file[f"arr_{number}"], leaf)
            assert file[f"arr_{number}"].dtype == leaf.dtype
