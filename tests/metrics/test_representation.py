"""Captured energy, overlap and principal angles against explicit rows and SciPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from spectra import LAYOUTS, array, dense, moment, ranks, rotation, subspace

from jaxunlearn.metrics import captured_energy, principal_angles, subspace_overlap
from jaxunlearn.nullspace.moments import Moment
from jaxunlearn.nullspace.subspace import Subspace

GROUPED = LAYOUTS["batched einsum"]  # g = 3, d = 4


def of_rows(rows, layout, dtype=np.float32):
    """The moment of these rows, `[g, n, d]`."""
    gram = np.einsum("gni,gnj->gij", rows, rows)
    return Moment(array(gram, dtype), array(rows.shape[1], dtype), layout)


def of_columns(columns, dtype=np.float64):
    """The subspace of one group that these columns span."""
    columns = np.asarray(columns, np.float64)
    spectrum = array(np.ones((1, len(columns))), dtype)
    return Subspace(array(columns[None], dtype), spectrum, dense(len(columns)))


def columns_of(record):
    """Columns of each group that are not padding, float64."""
    return [
        basis[:, :rank].astype(np.float64)
        for basis, rank in zip(np.asarray(record.basis), ranks(record), strict=True)
    ]


def at_angles(angles, d, seed=0):
    """Two subspaces of R^d with these principal angles, in bases turned at random."""
    rng, k = np.random.default_rng(seed), len(angles)
    q = rotation(rng, d)
    one, other = q[:, :k], q[:, :k] * np.cos(angles) + q[:, k : 2 * k] * np.sin(angles)
    return of_columns(one @ rotation(rng, k)), of_columns(other @ rotation(rng, k))


# Captured energy.


@pytest.mark.core
def test_the_first_axis_captures_two_thirds_of_the_worked_example():
    gram = jnp.asarray([[[2.0, 1.0], [1.0, 1.0]]])
    true = Moment(gram, jnp.ones(()), dense(2))
    axis = of_columns([[1], [0]], np.float32)
    assert float(captured_energy(axis, true)) == pytest.approx(2 / 3, abs=1e-7)


@pytest.mark.core
@pytest.mark.parametrize("name", ["dense", "grouped conv", "scanned"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_captured_energy_is_the_share_of_the_rows_squares(name, dtype):
    layout, rng = LAYOUTS[name], np.random.default_rng(1)
    # Groups of very different size, which a mean of shares would weigh alike.
    sizes = 10.0 ** np.arange(layout.groups)[:, None, None]
    rows = rng.normal(size=(layout.groups, 20, layout.fan_in)) * sizes
    basis = subspace(rng.integers(1, layout.fan_in, layout.groups), layout, dtype=dtype)
    inside = whole = 0
    for x, U in zip(rows, columns_of(basis), strict=True):
        inside += np.sum((x @ U @ U.T) ** 2)
        whole += np.sum(x**2)
    with jax.enable_x64(dtype == np.float64):
        share = captured_energy({"k": basis}, {"k": of_rows(rows, layout, dtype)})["k"]
    assert share.shape == ()
    assert share.dtype == dtype
    assert float(share) == pytest.approx(
        inside / whole, rel=20 * float(np.finfo(dtype).eps)
    )


def test_the_whole_space_captures_everything_and_nothing_captures_nothing():
    true = moment([5, 4, 3, 0], GROUPED)
    assert float(captured_energy(subspace(4, GROUPED), true)) == pytest.approx(1)
    assert float(captured_energy(subspace(0, GROUPED), true)) == 0


def test_padding_adds_nothing_to_energy_overlap_and_angles():
    tight, wide = (subspace([1, 3, 2], GROUPED, padding=p) for p in (0, 1))
    true, other = moment([5, 4, 3, 1], GROUPED), subspace(2, GROUPED, seed=1)
    for function, argument in (
        (captured_energy, true),
        (subspace_overlap, other),
        (principal_angles, other),
    ):
        np.testing.assert_allclose(
            function(tight, argument), function(wide, argument), rtol=1e-6
        )


def test_a_moment_of_zero_has_no_energy_to_capture():
    assert np.isnan(captured_energy(subspace(1, dense(2)), moment([0, 0])))


# Overlap.


@pytest.mark.core
@pytest.mark.parametrize("seed", range(3))
def test_overlap_is_the_sum_of_squared_products_over_the_smaller_ranks(seed):
    rng = np.random.default_rng(seed)
    one, other = (
        subspace(rng.integers(0, 4, 3), GROUPED, seed=10 * seed + i) for i in (1, 2)
    )
    shared = smaller = 0
    for a, b in zip(columns_of(one), columns_of(other), strict=True):
        shared += np.trace(a @ a.T @ b @ b.T)
        smaller += min(a.shape[1], b.shape[1])
    for pair in ((one, other), (other, one)):
        expected = shared / smaller
        assert float(subspace_overlap(*pair)) == pytest.approx(expected, rel=1e-5)


def test_overlap_is_one_inside_and_zero_across():
    q = rotation(np.random.default_rng(0), 6)
    whole = of_columns(q[:, :4])
    assert float(subspace_overlap(whole, of_columns(q[:, 1:3]))) == pytest.approx(1)
    assert float(subspace_overlap(whole, of_columns(q[:, 4:]))) < 1e-12


def test_overlap_with_an_empty_subspace_is_not_a_number():
    assert np.isnan(subspace_overlap(subspace(2, GROUPED), subspace(0, GROUPED)))


def test_energy_and_overlap_run_under_jit_and_vmap():
    true = moment([4, 3, 2, 1])
    basis, other = subspace(2, dense(4)), subspace(1, dense(4))
    trees = [{"a": record, "b": None} for record in (true, basis, other)]
    true_tree, basis_tree, other_tree = trees
    energy = jax.jit(captured_energy)(basis_tree, true_tree)
    assert energy["b"] is None
    np.testing.assert_allclose(energy["a"], captured_energy(basis, true), rtol=1e-6)
    overlap = jax.jit(subspace_overlap)(basis_tree, other_tree)
    np.testing.assert_allclose(overlap["a"], subspace_overlap(basis, other), rtol=1e-6)
    classes = jax.tree.map(lambda *x: jnp.stack(x), true, moment([1, 1, 0, 0], seed=3))
    mapped = jax.vmap(captured_energy, in_axes=(None, 0))(basis, classes)
    np.testing.assert_allclose(mapped[0], energy["a"], rtol=1e-6)
    assert mapped.shape == (2,)


def test_products_run_at_the_highest_precision():
    record, true = subspace(2, dense(4)), moment([4, 3, 2, 1])
    for function, argument in ((captured_energy, true), (subspace_overlap, record)):
        program = str(jax.make_jaxpr(function)(record, argument))
        assert program.count("dot_general") == 1
        assert program.count("Precision.HIGHEST") == 2


# Angles.


@pytest.mark.core
@pytest.mark.parametrize("seed", range(6))
def test_angles_are_scipys(seed):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(3, 9))
    one, other = (
        subspace(int(rng.integers(1, d + 1)), dense(d), seed=i, dtype=np.float64)
        for i in (seed, seed + 100)
    )
    [pair] = zip(columns_of(one), columns_of(other), strict=True)
    expected = np.sort(scipy.linalg.subspace_angles(*pair))
    for arguments in ((one, other), (other, one)):
        angles = principal_angles(*arguments)
        assert angles.dtype == np.float64
        np.testing.assert_allclose(angles, expected[None], atol=1e-14)


@pytest.mark.core
def test_small_and_right_angles_are_resolved():
    # An arc cosine would find 0 or 1.5e-8 for the first, an arc sine lose the last.
    wanted = np.array([1e-9, 1e-6, 1e-3, 0.5, np.pi / 2 - 1e-9, np.pi / 2])
    found = principal_angles(*at_angles(wanted, 13))
    np.testing.assert_allclose(found, wanted[None], rtol=0, atol=2e-15)


def test_angles_of_float32_bases_are_resolved_to_their_rounding():
    one, other = at_angles([1e-5, 0.3], 30)
    rounded = [
        dataclasses.replace(record, basis=array(record.basis, np.float32))
        for record in (one, other)
    ]
    found = principal_angles(*rounded)
    np.testing.assert_allclose(found, [[1e-5, 0.3]], rtol=0, atol=3e-7)
    # Of one basis in two rotations there is no angle but rounding.
    [same] = principal_angles(rounded[0], rounded[0])
    assert same.max() < 1e-14


@pytest.mark.core
def test_groups_of_different_rank_have_rows_filled_up():
    one = subspace([1, 0, 3], GROUPED, dtype=np.float64)
    other = subspace([3, 2, 2], GROUPED, seed=1, dtype=np.float64)
    angles = principal_angles({"k": one, "bias": None}, {"k": other, "bias": None})
    assert angles["bias"] is None
    assert angles["k"].shape == (3, 2)
    assert np.isnan(angles["k"]).tolist() == [[False, True], [True, True], [False] * 2]
    for row, a, b in zip(angles["k"], columns_of(one), columns_of(other), strict=True):
        row = row[~np.isnan(row)]
        if row.size:
            expected = np.sort(scipy.linalg.subspace_angles(a, b))
            np.testing.assert_allclose(row, expected, atol=1e-14)
    assert principal_angles(subspace(0, GROUPED), other).shape == (3, 0)


def test_the_overlap_is_the_mean_squared_cosine_of_the_angles():
    one, other = subspace(3, dense(7), seed=1), subspace(5, dense(7), seed=2)
    cosines = np.cos(principal_angles(one, other))
    expected = np.mean(cosines**2)
    assert float(subspace_overlap(one, other)) == pytest.approx(expected, rel=1e-6)


# Errors.

BASIS, TRUE = subspace(1, dense(2)), moment([2, 1])
# Of each function: names of its arguments, good values, the second's record.
FUNCTIONS = {
    captured_energy: (("subspaces", "moments"), (BASIS, TRUE), "Moment"),
    subspace_overlap: (("first", "second"), (BASIS, BASIS), "Subspace"),
    principal_angles: (("first", "second"), (BASIS, BASIS), "Subspace"),
}
each = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


@each
def test_other_records_are_refused_by_path(function):
    (first, second), (one, other), kind = FUNCTIONS[function]
    wrong = BASIS if kind == "Moment" else TRUE
    with pytest.raises(TypeError, match=f"{second} must hold a {kind} or None at a/k"):
        function({"a": {"k": one}}, {"a": {"k": wrong}})
    with pytest.raises(TypeError, match=f"{first} must hold a Subspace or None at a/k"):
        function({"a": {"k": TRUE}}, {"a": {"k": other}})
    with pytest.raises(ValueError, match=f"{first} must hold at least one Subspace"):
        function({"a": None}, {"a": None})


@each
def test_trees_that_differ_are_refused_by_path(function):
    (first, second), (one, other), kind = FUNCTIONS[function]
    with pytest.raises(ValueError, match=f"only {second} has a/extra"):
        function({"a": {"k": one}}, {"a": {"k": other, "extra": None}})
    words = f"{second} hold a {kind} at a, where {first} hold None"
    with pytest.raises(ValueError, match=words):
        function({"a": None, "b": one}, {"a": other, "b": other})
    words = f"{first} hold a Subspace at a, where {second} hold None"
    with pytest.raises(ValueError, match=words):
        function({"a": one, "b": one}, {"a": None, "b": other})


@each
def test_layouts_that_differ_are_refused_by_path(function):
    (first, second), (one, other), _ = FUNCTIONS[function]
    other = dataclasses.replace(other, layout=dense(2, 7))
    words = f"a/k: {first} read it as Layout.* and {second} as Layout.*one network"
    with pytest.raises(ValueError, match=words):
        function({"a": {"k": one}}, {"a": {"k": other}})


@each
def test_leading_axes_and_other_shapes_are_refused_by_path(function):
    (first, second), (one, other), _ = FUNCTIONS[function]
    stacked = dataclasses.replace(one, basis=jnp.stack([one.basis] * 2))
    with pytest.raises(
        ValueError, match=rf"{first} at k have leading .*\(2, 1, 2, 1\)"
    ):
        function({"k": stacked}, {"k": other})
    short = dataclasses.replace(one, basis=one.basis[:, :1])
    with pytest.raises(ValueError, match=rf"{first} at k: .*\(1, 1, 1\).*\(1, 2, rank"):
        function({"k": short}, {"k": other})


def test_moments_by_class_and_of_other_shapes_are_refused_by_path():
    by_class = dataclasses.replace(
        TRUE, gram=jnp.stack([TRUE.gram] * 3), rows=jnp.ones(3), classes=(0, 1, 2)
    )
    words = r"moments at k have a leading class axis.*\(3, 1, 2, 2\).*sum_classes"
    with pytest.raises(ValueError, match=words):
        captured_energy({"k": BASIS}, {"k": by_class})
    short = dataclasses.replace(TRUE, gram=TRUE.gram[:, :1])
    with pytest.raises(ValueError, match=r"moments at k: .*\(1, 1, 2\).*\(1, 2, 2\)"):
        captured_energy({"k": BASIS}, {"k": short})


def test_columns_that_are_not_orthonormal_have_no_angles():
    for factor in (2.0, np.nan):
        bad = dataclasses.replace(BASIS, basis=factor * BASIS.basis)
        with pytest.raises(ValueError, match="second at k: .* orthonormal or zero"):
            principal_angles({"k": BASIS}, {"k": bad})


def test_angles_refuse_tracers():
    with pytest.raises(TypeError, match="k is traced, and finding principal angles"):
        jax.jit(lambda s: principal_angles({"k": s}, {"k": s}))(BASIS)
