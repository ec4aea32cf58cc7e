"""Ranks by each rule, bases against NumPy, the rows' own singular vectors, merging."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra import (
    LAYOUTS,
    classifier,
    dense,
    moment,
    projectors,
    ranks,
    rotation,
    subspace,
)

from jaxunlearn.capture.inputs import layer_inputs
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.nullspace.streaming_qr import row_subspaces
from jaxunlearn.nullspace.subspace import Subspace, merge_subspaces, subspaces

pytestmark = pytest.mark.core

EPS32 = float(np.finfo(np.float32).eps)


def rank_of(spectrum, *, dtype=np.float64, rotate=False, **rule):
    [rank] = ranks(subspaces(moment(spectrum, dtype=dtype, rotate=rotate), **rule))
    return rank


class Small(nn.Module):
    """A strided convolution, a grouped one, and a head."""

    dtype: np.dtype = np.float32

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(4, (3, 3), strides=2, param_dtype=self.dtype)(images)
        x = nn.relu(x)
        x = nn.Conv(4, (2, 2), feature_group_count=2, param_dtype=self.dtype)(x)
        return nn.Dense(3, param_dtype=self.dtype)(nn.relu(x).reshape(len(x), -1))


def small(n=7, dtype=np.float32):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(n, 6, 5, 2)), dtype)
    return classifier(Small(dtype), images), images


class Linear(nn.Module):
    """No nonlinearity: what the images span, the layer inputs span."""

    dtype: np.dtype = np.float32

    @nn.compact
    def __call__(self, images):
        x = images.reshape(len(images), -1)
        return nn.Dense(2, param_dtype=self.dtype)(x)


def linear(rows, shape, dtype=np.float32):
    images = jnp.asarray(rows.reshape(-1, *shape), dtype)
    return classifier(Linear(dtype), images), images


# Ranks.


@pytest.mark.parametrize(
    ("spectrum", "energy", "rank"),
    [
        ([4, 2, 1, 1], 0.4, 1),
        ([4, 2, 1, 1], 0.5, 1),
        ([4, 2, 1, 1], 0.5 + 1e-9, 2),
        ([4, 2, 1, 1], 0.75, 2),
        ([4, 2, 1, 1], 0.75 + 1e-9, 3),
        ([4, 2, 1, 1], 1.0, 4),
        ([4, 2, 1, 1], 1, 4),
        ([4, 2, 1, 1], 1e-300, 1),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 0.3, 3),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 0.7, 7),
        ([99, 1, 0, 0], 0.97, 1),
        ([1, 0, 0, 0], 0.5, 1),
        ([1, 0, 0, 0], 1.0, 1),
        ([0, 0, 0, 0], 0.5, 0),
        ([0, 0, 0, 0], 1.0, 0),
        ([3], 0.1, 1),
    ],
)
def test_energy_is_the_smallest_rank_that_reaches_the_share(spectrum, energy, rank):
    assert rank_of(spectrum, energy=energy) == rank


@pytest.mark.parametrize("seed", range(5))
def test_a_rotated_basis_reaches_the_same_share_at_the_boundary(seed):
    spectrum = moment([4.0, 2, 1, 1], dtype=np.float64, seed=seed)
    assert ranks(subspaces(spectrum, energy=0.75)) == [2]


@pytest.mark.parametrize(("dtype", "rank"), [(np.float32, 2), (np.float64, 3)])
def test_energy_one_counts_what_the_moment_resolves(dtype, rank):
    assert rank_of([1, 1e-3, 1e-9, 1e-17], dtype=dtype, energy=1.0) == rank


def test_what_a_moment_cannot_resolve_carries_no_energy():
    assert rank_of([1] + [EPS32 / 2] * 200, dtype=np.float32, energy=1 - 1e-6) == 1


@pytest.mark.parametrize(("rank", "kept"), [(0, 0), (1, 1), (4, 4), (9, 4)])
def test_rank_is_itself_up_to_the_fan_in(rank, kept):
    assert rank_of([4, 2, 1, 1], rank=rank) == kept
    assert rank_of([4, 0, 0, 0], rank=rank) == kept


@pytest.mark.parametrize(
    ("fraction", "d", "rank"),
    [(0, 4, 0), (1, 4, 4), (0.5, 4, 2), (0.5, 5, 2), (0.5, 7, 4), (0.29, 100, 29)],
)
def test_protected_fraction_rounds_to_directions(fraction, d, rank):
    assert rank_of(np.arange(d, 0, -1), protected_fraction=fraction) == rank


def test_rtol_is_relative_to_the_largest_singular_value_of_the_rows():
    squares = np.array([1, 0.5, 0.25, 0.125]) ** 2
    assert rank_of(squares, rtol=0.5) == 1
    assert rank_of(squares, rtol=0.4) == 2
    assert rank_of(squares, rtol=0.2) == 3
    assert rank_of(100 * squares, rtol=0.2) == 3
    assert rank_of([0, 0, 0, 0], rtol=0.2) == 0


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8),
    st.floats(0.01, 1.0),
    st.integers(-20, 20),
)
@settings(max_examples=30, deadline=None)
def test_energy_keeps_the_fewest_and_does_not_depend_on_scale(values, energy, power):
    spectrum = np.sort(values)[::-1]
    rank = rank_of(spectrum, energy=energy)
    share = np.cumsum(spectrum) / np.sum(spectrum)
    assert share[rank - 1] >= energy - 1e-12
    assert rank == 1 or share[rank - 2] < energy
    assert rank_of(spectrum * 2.0**power, energy=energy) == rank


# Bases.


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bases_span_the_leading_eigenvectors(name, dtype):
    layout = LAYOUTS[name]
    record = moment(2.0 ** -np.arange(layout.fan_in), layout, dtype=dtype)
    result = subspaces({"a": record, "b": None}, rank=2)["a"]
    values, vectors = np.linalg.eigh(np.asarray(record.gram, np.float64))
    tolerance = 10 * np.finfo(dtype).eps
    assert result.basis.shape == (layout.groups, layout.fan_in, 2)
    assert result.basis.dtype == result.spectrum.dtype == dtype
    assert result.layout == layout
    np.testing.assert_allclose(
        projectors(result.basis), projectors(vectors[:, :, -2:]), atol=tolerance
    )
    np.testing.assert_allclose(result.spectrum, values[:, ::-1], atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_are_orthonormal(dtype):
    record = moment(2.0 ** -np.arange(40), dense(40), dtype=dtype)
    basis = np.asarray(subspaces(record, protected_fraction=1).basis[0], np.float64)
    np.testing.assert_allclose(
        basis.T @ basis, np.eye(40), atol=4 * np.finfo(dtype).eps
    )


def test_groups_of_different_rank_are_padded_with_zero_columns():
    layout = LAYOUTS["batched einsum"]
    record = moment([[1, 0, 0, 0], [0, 0, 0, 0], [5, 4, 3, 0]], layout)
    result = subspaces(record, energy=1.0)
    assert result.basis.shape == (3, 4, 3)
    assert ranks(result) == [1, 0, 3]
    np.testing.assert_allclose(result.spectrum[2], [5, 4, 3, 0], atol=1e-5)


def test_each_class_has_a_basis_of_its_own():
    layout = LAYOUTS["scanned"]
    rng = np.random.default_rng(0)
    record = moment(np.sort(rng.uniform(size=(3, 2, 4)))[..., ::-1], layout)
    together = subspaces(record, energy=0.8)
    assert together.basis.shape[:3] == (3, 2, 4)
    for index in range(3):
        one = subspaces(jax.tree.map(lambda a, i=index: a[i], record), energy=0.8)
        np.testing.assert_allclose(
            projectors(together.basis[index]), projectors(one.basis), atol=1e-6
        )
        np.testing.assert_array_equal(together.spectrum[index], one.spectrum)


def test_the_spectrum_is_not_negative_and_bfloat16_moments_are_read():
    gram = jnp.asarray([[[1.0, 0.0], [0.0, -1e-3]]], jnp.bfloat16)
    record = dataclasses.replace(moment([1, 1]), gram=gram)
    result = subspaces(record, energy=0.99)
    assert result.basis.dtype == result.spectrum.dtype == jnp.bfloat16
    assert result.spectrum.tolist() == [[1.0, 0.0]]
    assert ranks(result) == [1]


def test_results_are_on_the_default_device_and_follow_their_users():
    result = subspaces(moment([2, 1]), rank=1)
    other = jax.devices()[1]
    moved = jax.device_put(jnp.ones((1, 2, 1)), other)
    assert (result.basis + moved).devices() == {other}


def test_trees_keep_their_structure_and_none():
    tree = {"a": [moment([2, 1]), None], "b": (None, moment([1, 0]))}
    result = subspaces(tree, energy=0.9)
    assert result["a"][1] is None
    assert result["b"][0] is None
    assert ranks(result["a"][0]) == [2]
    assert ranks(result["b"][1]) == [1]


def test_a_subspace_survives_what_jax_puts_into_its_fields():
    record = subspace(2, dense(4))
    shapes = jax.eval_shape(lambda x: x, record)
    assert shapes.basis.shape == (1, 4, 2)
    axes = dataclasses.replace(record, basis=0, spectrum=None)
    stacked = dataclasses.replace(record, basis=jnp.stack([record.basis] * 3))
    mapped = jax.vmap(lambda s: s.basis.sum(), in_axes=(axes,))(stacked)
    assert mapped.shape == (3,)
    assert jax.tree.map(lambda _: None, record).basis is None


# Errors.


@pytest.mark.parametrize(
    ("rule", "error", "words"),
    [
        ({}, ValueError, "Give exactly one .* given: none"),
        ({"energy": 0.9, "rank": 2}, ValueError, "given: energy and rank"),
        (
            {"energy": 0.0},
            ValueError,
            "energy must be above 0 and at most 1; it is 0.0",
        ),
        ({"energy": 1.5}, ValueError, "energy must be above 0"),
        ({"energy": math.nan}, ValueError, "energy must be above 0"),
        ({"energy": True}, TypeError, "energy must be a number; it is True"),
        ({"rank": -1}, ValueError, "rank must be at least 0; it is -1"),
        ({"rank": True}, TypeError, "rank must be an integer; it is True"),
        ({"rank": 2.0}, TypeError, "rank"),
        ({"protected_fraction": -0.1}, ValueError, "protected_fraction must be from 0"),
        ({"protected_fraction": 1.1}, ValueError, "protected_fraction must be from 0"),
        ({"rtol": 0.0}, ValueError, "rtol must be between 0 and 1"),
        ({"rtol": 1.0}, ValueError, "rtol must be between 0 and 1"),
    ],
)
def test_rules_are_checked(rule, error, words):
    with pytest.raises(error, match=words):
        subspaces(moment([2, 1]), **rule)
    network, images = small(2)
    with pytest.raises(error, match=words):
        row_subspaces(network, images, **rule)


@pytest.mark.parametrize(
    ("dtype", "refused", "allowed"),
    [(np.float32, 3.4e-4, 3.5e-4), (np.float64, 1.4e-8, 1.5e-8)],
)
def test_an_rtol_below_the_moments_resolution_is_refused(dtype, refused, allowed):
    tree = {"head": {"kernel": moment([2, 1], dtype=dtype)}}
    with pytest.raises(ValueError, match=r"head/kernel is float.*use row_subspaces"):
        subspaces(tree, rtol=refused)
    assert ranks(subspaces(tree, rtol=allowed)["head"]["kernel"]) == [2]


def test_other_leaves_are_refused_by_path():
    with pytest.raises(TypeError, match=r"a Moment or None at a/b; it holds a"):
        subspaces({"a": {"b": jnp.ones(2)}, "c": moment([2, 1])}, rank=1)
    with pytest.raises(ValueError, match="moments must hold at least one Moment"):
        subspaces({"a": None}, rank=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_moment_that_is_not_finite_is_refused_by_path(value):
    bad = dataclasses.replace(moment([2, 1]), gram=jnp.full((1, 2, 2), value))
    with pytest.raises(ValueError, match="a/kernel: its second moment is not finite"):
        subspaces({"a": {"kernel": bad}}, rank=1)


def test_a_moment_of_another_shape_than_its_layout_is_refused():
    bad = dataclasses.replace(moment([2, 1]), layout=dense(3))
    with pytest.raises(ValueError, match=r"\(1, 2, 2\).* end in \(1, 3, 3\)"):
        subspaces({"kernel": bad}, rank=1)


def test_tracers_are_refused():
    with pytest.raises(TypeError, match="kernel is traced, and choosing ranks"):
        jax.jit(lambda m: subspaces({"kernel": m}, rank=1))(moment([2, 1]))
    with pytest.raises(TypeError, match="choosing ranks"):
        jax.jit(lambda s: merge_subspaces([s], energy=0.9))(subspace(1, dense(3)))


# Rows.


@pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.long)]
)
def test_row_subspaces_are_the_right_singular_vectors(dtype):
    with jax.enable_x64(dtype == np.float64):
        network, images = small(dtype=dtype)
        inputs = jax.jit(layer_inputs)(network, images)
        result = row_subspaces(network, images, rank=3, batch_size=3)
    for layer in ("Conv_0", "Conv_1", "Dense_0"):
        assert result[layer]["bias"] is None
        record, rows = result[layer]["kernel"], inputs[layer]["kernel"].inputs
        rows = np.asarray(rows, np.float64)
        for group in range(len(rows)):
            _, sigma, vectors = np.linalg.svd(rows[group], full_matrices=False)
            np.testing.assert_allclose(
                projectors(record.basis[group]),
                projectors(vectors[:3].T),
                atol=20 * np.finfo(dtype).eps,
            )
            np.testing.assert_allclose(
                record.spectrum[group, : len(sigma)],
                sigma**2,
                atol=sigma[0] ** 2 * 1e-6,
            )
        assert record.basis.dtype == record.spectrum.dtype == dtype


@pytest.mark.long
def test_rows_and_moments_agree_on_spectra_and_spans():
    network, images = small()
    by_rows = row_subspaces(network, images, energy=0.9)
    by_moments = subspaces(second_moments(network, images), energy=0.9)

    def compare(one, other):
        assert ranks(one) == ranks(other)
        scale = float(other.spectrum.max())
        np.testing.assert_allclose(one.spectrum, other.spectrum, atol=1e-5 * scale)
        np.testing.assert_allclose(
            projectors(one.basis), projectors(other.basis), atol=1e-4
        )

    is_leaf = lambda x: isinstance(x, Subspace)  # noqa: E731
    jax.tree.map(compare, by_rows, by_moments, is_leaf=is_leaf)


@pytest.mark.long
def test_rows_do_not_depend_on_batches():
    network, images = small()
    whole = row_subspaces(network, images, rank=4)
    for other in (
        row_subspaces(network, images, rank=4, batch_size=2),
        row_subspaces(network, [images[:3], images[3:]], rank=4, batch_size=2),
        row_subspaces(network, np.asarray(images[::-1]), rank=4, batch_size=5),
    ):
        for layer, leaves in whole.items():
            np.testing.assert_allclose(
                projectors(leaves["kernel"].basis),
                projectors(other[layer]["kernel"].basis),
                atol=1e-5,
            )


@pytest.mark.long
@pytest.mark.parametrize(("sigma", "rank"), [(1e-10, 4), (1e-13, 3)])
def test_rows_resolve_what_a_moment_cannot(sigma, rank):
    rng = np.random.default_rng(0)
    values = np.array([1, 0.5, 0.1, sigma])
    rows = rotation(rng, 6)[:, :4] * values @ rotation(rng, 8)[:4]
    with jax.enable_x64(True):
        network, images = linear(rows, (2, 2, 2), np.float64)
        result = row_subspaces(network, images, rtol=1e-12, batch_size=2)
        assert ranks(result["Dense_0"]["kernel"]) == [rank]
        squared = subspaces(second_moments(network, images), rtol=2e-8)
        assert ranks(squared["Dense_0"]["kernel"]) == [3]


@pytest.mark.long
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_energy_one_takes_the_rounding_of_rows_for_nothing(dtype):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 48))
    with jax.enable_x64(dtype == np.float64):
        network, images = linear(rows, (4, 4, 3), dtype)
        result = row_subspaces(network, images, energy=1.0, batch_size=16)
    assert ranks(result["Dense_0"]["kernel"]) == [5]


def test_fewer_rows_than_directions_still_make_a_whole_basis():
    network, images = linear(np.random.default_rng(0).normal(size=(2, 8)), (2, 2, 2))
    record = row_subspaces(network, images, rank=8)["Dense_0"]["kernel"]
    np.testing.assert_allclose(projectors(record.basis[0]), np.eye(8), atol=1e-6)
    np.testing.assert_allclose(record.spectrum[0, 2:], 0, atol=1e-12)


def test_rows_that_are_not_finite_are_refused_by_path():
    network, images = small()
    network.params["Conv_0"]["kernel"] *= 100
    overflowing = images.at[-1].set(3e38)
    with pytest.raises(ValueError, match="Conv_1/kernel: its inputs are not finite"):
        row_subspaces(network, overflowing, rank=1)


def test_images_and_batch_size_are_checked():
    network, images = small()
    with pytest.raises(ValueError, match="empty"):
        row_subspaces(network, images[:0], rank=1)
    with pytest.raises(ValueError, match="batch_size must be at least 1; it is 0"):
        row_subspaces(network, images, rank=1, batch_size=0)
    with pytest.raises(TypeError, match="read only once"):
        row_subspaces(network, iter([images]), rank=1)


# Merging.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["dense", "grouped conv"])
def test_merging_is_the_svd_of_the_concatenated_bases(name, dtype):
    layout = LAYOUTS[name]
    trees = [{"k": subspace(r, layout, seed=r, dtype=dtype)} for r in (1, 3, 2)]
    result = merge_subspaces(trees, energy=0.8)["k"]
    bases = np.concatenate([t["k"].basis for t in trees], -1).astype(np.float64)
    for group in range(layout.groups):
        left, sigma, _ = np.linalg.svd(bases[group])
        share = np.cumsum(sigma**2) / np.sum(sigma**2)
        rank = int(np.argmax(share >= 0.8)) + 1
        assert ranks(result)[group] == rank
        np.testing.assert_allclose(
            projectors(result.basis[group]),
            projectors(left[:, :rank]),
            atol=30 * np.finfo(dtype).eps,
        )
        np.testing.assert_allclose(
            result.spectrum[group, : len(sigma)], sigma**2, atol=1e-5
        )
    assert result.basis.dtype == dtype


@given(st.integers(0, 6), st.integers(1, 3), st.permutations([0, 1]))
@settings(max_examples=15, deadline=None)
def test_merging_copies_changes_nothing_and_order_does_not_matter(r, n, order):
    d = 6
    one = subspace(r, dense(d))
    same = merge_subspaces([one] * n, energy=1.0)
    np.testing.assert_allclose(projectors(same.basis), projectors(one.basis), atol=1e-5)
    pair = [one, subspace(1, dense(d), seed=1)]
    merged = [
        merge_subspaces(trees, energy=0.9999)
        for trees in (pair, [pair[index] for index in order])
    ]
    np.testing.assert_allclose(
        *(projectors(record.basis) for record in merged), atol=1e-5
    )


def test_leading_axes_are_merged_as_further_trees():
    records = [subspace(2, dense(6), seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *records)
    one, other = (
        merge_subspaces(records, energy=0.9),
        merge_subspaces([stacked], energy=0.9),
    )
    np.testing.assert_allclose(
        projectors(one.basis), projectors(other.basis), atol=1e-6
    )
    assert other.basis.ndim == 3


def test_empty_bases_merge_to_an_empty_one():
    result = merge_subspaces([subspace(0, dense(4))] * 2, energy=0.9)
    assert result.basis.shape == (1, 4, 0)
    np.testing.assert_array_equal(result.spectrum, np.zeros((1, 4)))


def test_merging_refuses_what_does_not_match():
    one, other = subspace(1, dense(4)), subspace(1, dense(5))
    with pytest.raises(ValueError, match=r"k: trees\[0\] reads it .* trees\[1\] as"):
        merge_subspaces([{"k": one}, {"k": other}], energy=0.9)
    with pytest.raises(ValueError, match=r"k: trees\[0\] reads it .* as None"):
        merge_subspaces([{"k": one}, {"k": None}], energy=0.9)
    with pytest.raises(ValueError, match=r"only trees\[1\] has j"):
        merge_subspaces([{"k": one}, {"k": one, "j": one}], energy=0.9)
    with pytest.raises(TypeError, match="a Subspace or None at k"):
        merge_subspaces([{"k": jnp.ones(2)}], energy=0.9)
    with pytest.raises(ValueError, match="trees is empty"):
        merge_subspaces([], energy=0.9)
    with pytest.raises(TypeError, match="trees"):
        merge_subspaces({"k": one}, energy=0.9)
    with pytest.raises(ValueError, match="energy must be above 0"):
        merge_subspaces([{"k": one}], energy=2.0)


def test_a_merge_also_refuses_none_first():
    one = subspace(1, dense(4))
    with pytest.raises(ValueError, match="k: trees"):
        merge_subspaces([{"k": None, "j": one}, {"k": one, "j": one}], energy=0.9)
