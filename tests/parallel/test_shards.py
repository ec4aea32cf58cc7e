"""One function on every device's share, by either of JAX's two transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxunlearn import parallel

TRANSFORMS = ["shard_map", "pmap"]


def mesh(count=8):
    return jax.make_mesh((count,), ("shard",), devices=jax.devices()[:count])


def centred(rows, shared):
    """Less the mean over all devices, which none of them knows alone."""
    mean = lax.pmean(rows["x"].mean(1), "shard")
    return {"x": rows["x"] - mean[:, None], "y": rows["y"] + shared}, mean


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function])
def test_a_function_of_shares_is_one_of_all_rows(transform, wrap, count):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 24, 3)).astype(np.float32)
    y = np.arange(48, dtype=np.float32).reshape(2, 24)
    axes = (1, None)
    run = wrap(parallel.map_shards(centred, mesh(count), axes, axes, transform))
    rows, mean = run({"x": jnp.asarray(x), "y": jnp.asarray(y)}, jnp.float32(5))
    np.testing.assert_allclose(mean, x.mean(1), atol=1e-6)
    np.testing.assert_allclose(rows["x"], x - x.mean(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(rows["y"], y + 5)


@pytest.mark.core
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_each_argument_has_an_axis_of_its_own(transform):
    def add(leading, second, whole):
        total = lax.psum((leading.sum(), second.sum()), "shard")
        return leading * whole, second + leading[0, 0], total

    given = np.arange(16.0).reshape(8, 2), np.arange(24.0).reshape(3, 8), np.float64(3)
    given = jax.tree.map(jnp.asarray, given)
    in_axes, out_axes = (0, 1, None), (0, 1, None)
    run = parallel.map_shards(add, mesh(), in_axes, out_axes, transform)
    leading, second, total = run(*given)
    np.testing.assert_array_equal(leading, given[0] * 3)
    np.testing.assert_array_equal(second, given[1] + given[0][:, :1].T)
    assert [float(x) for x in total] == [120, 276]


def slopes(rows):
    """Of `sum |x - mean x|^4 / 24`, each device bringing its own part of the sum."""

    def part(x):
        mean = lax.pmean(x.mean(1), "shard")
        return ((x - mean[:, None]) ** 4).sum() / 24

    return jax.grad(part)(rows)


@pytest.mark.core
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_gradients_go_through_what_devices_reduce(transform):
    x = np.random.default_rng(0).exponential(size=(1, 24)).astype(np.float32)
    run = jax.jit(parallel.map_shards(slopes, mesh(), (1,), 1, transform))
    cubes = 4 * (x - x.mean()) ** 3 / 24
    np.testing.assert_allclose(run(jnp.asarray(x)), cubes - cubes.mean(), atol=1e-5)
    assert abs(cubes.mean()) > 0.1


def test_another_transform_and_a_mesh_of_two_axes_are_refused():
    with pytest.raises(ValueError, match="transform must be .* it is 'xmap'"):
        parallel.check_transform("xmap")
    square = jax.make_mesh((4, 2), ("a", "b"))
    with pytest.raises(ValueError, match="mesh must be .* with one axis"):
        parallel.map_shards(slopes, square, (1,), 1)
