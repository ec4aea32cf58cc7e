"""Moments, subspaces and updates with prescribed spectra, and dense NumPy twins."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.capture.layout import Layout, View
from jaxunlearn.classifier.classifier import Classifier, freeze
from jaxunlearn.nullspace.moments import Moment
from jaxunlearn.nullspace.subspace import Subspace

# One of every kind of layout, by name.
LAYOUTS = {
    "dense": View((6, 5)).layout("dense", (), (0,), (1,)),
    "transposed dense": View((5, 6)).layout("dense", (), (1,), (0,)),
    "dense general": View((2, 3, 2, 2)).layout("dense", (), (0, 1), (2, 3)),
    "conv": View((3, 2, 2, 4)).layout("conv", (), (0, 1, 2), (3,)),
    "flipped conv": View((2, 2, 2, 3))
    .then("rev", (0, 1))
    .layout("conv", (), (0, 1, 2), (3,)),
    "grouped conv": View((2, 2, 2, 6)).layout("conv", (), (0, 1, 2), (3,), splits=3),
    "batched einsum": View((3, 4, 2)).layout("einsum", (0,), (1,), (2,)),
    "scanned": View((2, 4, 3), sliced=1).layout("dense", (), (0,), (1,)),
}


def dense(d: int, o: int = 3) -> Layout:
    return View((d, o)).layout("dense", (), (0,), (1,))


def rotation(rng, d: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def array(values, dtype=np.float32) -> jax.Array:
    """An array of exactly this dtype, float64 included."""
    with jax.enable_x64(True):
        return jnp.asarray(values, dtype)


def moment(spectrum, layout=None, *, dtype=np.float32, seed=0, rotate=True) -> Moment:
    """A moment with these eigenvalues, `[d]` or `[..., g, d]`."""
    spectrum = np.asarray(spectrum, np.float64)
    layout = layout or dense(spectrum.shape[-1])
    d = layout.fan_in
    if spectrum.ndim == 1:
        spectrum = np.tile(spectrum, (layout.groups, 1))
    rng = np.random.default_rng(seed)
    grams = []
    for values in spectrum.reshape(-1, d):
        basis = rotation(rng, d) if rotate else np.eye(d)
        grams.append(basis * values @ basis.T)
    gram = np.reshape(grams, (*spectrum.shape, d))
    return Moment(array(gram, dtype), array(np.ones(gram.shape[:-3]), dtype), layout)


def subspace(ranks, layout, *, dtype=np.float32, seed=0, padding=0) -> Subspace:
    """Random orthonormal columns, of these ranks (one a group, or one for all)."""
    ranks = np.broadcast_to(ranks, (layout.groups,))
    rng = np.random.default_rng(seed)
    d = layout.fan_in
    basis = np.zeros((layout.groups, d, ranks.max() + padding))
    for columns, rank in zip(basis, ranks, strict=True):
        columns[:, :rank] = rotation(rng, d)[:, :rank]
    spectrum = np.ones((layout.groups, d))
    return Subspace(array(basis, dtype), array(spectrum, dtype), layout)


def projectors(basis) -> np.ndarray:
    """`U UT` in float64."""
    basis = np.asarray(basis, np.float64)
    return basis @ np.swapaxes(basis, -1, -2)


def ranks(record: Subspace) -> list[int]:
    """Columns that are not padding, one number for each group."""
    some = np.any(np.asarray(record.basis) != 0, axis=-2)
    return some.sum(-1).ravel().tolist()


def normal(shape, seed=0, dtype=np.float32) -> jax.Array:
    return array(np.random.default_rng(seed).normal(size=shape), dtype)


def matrix(layout, leaf) -> np.ndarray:
    """The leaf as `[g, d, o]`, float64."""
    with jax.enable_x64(True):
        return np.asarray(layout.to_matrix(jnp.asarray(leaf, np.float64)))


def leaf(layout, values, dtype=np.float64) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(layout.from_matrix(jnp.asarray(values, dtype)))


def classifier(model, images, seed=0) -> Classifier:
    """The linen module with normal parameters, its initialisers not compiled."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(seed)

    def draw(x):
        scale = np.sqrt(max(np.prod(x.shape[:-1]), 1))
        return array(rng.normal(size=x.shape) / scale, x.dtype)

    return freeze(model, jax.tree.map(draw, shapes))
