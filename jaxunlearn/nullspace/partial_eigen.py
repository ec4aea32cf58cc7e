"""The leading eigenvectors of a large second moment, without all the others.

A randomised block Krylov method in float64, in explicit linear algebra: products with
the matrix, QR, and full decompositions of small matrices only.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.rank_rules import Rule

# Up to this fan-in a full decomposition is affordable, and tells the whole spectrum.
FULL_UP_TO = 4608

# In shares of the fan-in: a larger rank is left to the full decomposition at once, and
# what has not converged in so large a basis, then. On one core, moments of ReLU
# features of d = 2304 take 1 / 5.3 of its time at a rank of d / 20 and 1 / 2.4 at
# d / 10; of d = 1024, 1 / 3.6 and 1 / 1.9, and 1.7 times as long at d / 5.
LARGEST_RANK = 0.12
LARGEST_BASIS = 0.4

# The basis begins with so many columns for each direction that is asked for, or this
# share of the fan-in where that is not known, and grows by this factor.
_COLUMNS_PER_RANK = 1.6
_FIRST_BASIS = 0.05
_GROWTH = 1.3

# How many products with the matrix the first basis is made of.
_DEPTH = 10


class Basis(NamedTuple):
    """Orthonormal columns `V`, and what the matrix `C` does to them.

    Attributes:
      columns: `V`; zero columns are still to be filled.
      inner: `VT C V`.
      residual: `(I - V VT) C X`, for the block `X` of columns that came last. For all
        others it is zero.
    """

    columns: Float[Array, "d m"]
    inner: Float[Array, "m m"]
    residual: Float[Array, "d b"]


def leading_eigenpairs(
    gram: Float[np.ndarray, "d d"],
    rule: Rule,
    resolution: float,
    device: jax.Device | None = None,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d r"]] | None:
    """The eigenvectors that a rule keeps, and the spectrum as far as it is known.

    In an orthonormal basis `V` of the blocks `X, C X, C^2 X, ...` of a random `X`, the
    eigenpairs of `VT C V` approach the leading ones of `C`. The basis grows until pairs
    that have converged answer the rule. Converged means `|C u - s u| <= resolution *
    s_1`: they are the exact eigenpairs of a matrix that is as close to `C` as rounding.

    Args:
      gram: symmetric and positive semidefinite.
      rule: how many eigenvectors to keep.
      resolution: the relative error of the gram, such as `eps` of its dtype.
      device: where to compute; None: where decompositions run.

    Returns:
      Eigenvalues, descending, and orthonormal columns. Eigenvalues beyond those that
      were found are the mean of the rest, so that they add up to the trace. None where
      a full decomposition is cheaper, as the rank is too large a share of `d`.

    Source: Golub and Underwood: The block Lanczos method for computing eigenvalues,
    1977; Musco and Musco: Randomized block Krylov methods, arXiv 1504.05477.

    >>> gram = np.diag(2.0 ** -np.arange(60))
    >>> values, vectors = leading_eigenpairs(gram, Rule("rank", 3), 1e-12)
    >>> print(values[:3].round(6), vectors.shape)
    [1.   0.5  0.25] (60, 3)
    """
    d, bound = len(gram), rule.upper_bound(len(gram))
    trace = float(np.trace(gram, dtype=np.float64))
    if trace <= 0 or LARGEST_RANK * d < bound < d:
        return None
    block, sizes = _plan(d, bound)
    with linalg.float64():
        matrix = linalg.placed(gram, device)
        basis = _started(matrix, block)
        for size in sizes:
            basis = _grown(matrix, basis, size, trace)
            captured = float(jnp.trace(basis.inner)) / trace
            # Its parts cannot hold what the whole basis does not.
            if rule.name == "energy" and captured + d * resolution < rule.value:
                continue
            values, vectors, errors = map(np.asarray, _pairs(basis))
            # Nothing is more exact than the products are.
            tolerance = max(resolution, d * float(np.finfo(np.float64).eps)) * values[0]
            found = int(np.argmax(np.append(errors, np.inf) > tolerance))
            answer = _answer(np.maximum(values[:found], 0), trace, rule, d, resolution)
            if answer is not None:
                spectrum, rank = answer
                return spectrum, np.asarray(_product(basis.columns, vectors[:, :rank]))
    return None


def _answer(leading, trace, rule, d, resolution) -> tuple[np.ndarray, int] | None:
    """The spectrum and the rank, if these eigenvalues tell it."""
    if not len(leading):
        return None
    rest = max(trace - float(leading.sum()), 0.0)
    missing = d - len(leading)
    if rest > (1 + 1e-6) * missing * leading[-1] + d * resolution * leading[0]:
        # Larger ones were missed: equal eigenvalues, more than columns in a block.
        return None
    rank = rule.rank_of_leading(leading, rest, d, resolution)
    if rank is None:
        return None
    others = np.full(missing, rest / max(missing, 1))
    return np.concatenate([leading, np.minimum(others, leading[-1])]), rank


def _plan(d: int, bound: int) -> tuple[int, list[int]]:
    """Columns in a block, and in the basis whenever eigenpairs are looked for."""
    most = LARGEST_BASIS * d
    first = _FIRST_BASIS * d if bound == d else _COLUMNS_PER_RANK * bound
    block = max(1, math.ceil(min(first, most) / _DEPTH))
    blocks, sizes = float(_DEPTH), []
    while not sizes or math.ceil(blocks) * block <= most:
        sizes.append(math.ceil(blocks) * block)
        blocks *= _GROWTH
    return block, sizes


def _started(matrix: Array, block: int) -> Basis:
    d, dtype = len(matrix), matrix.dtype
    # The same start for all: what comes out does not depend on it.
    start = np.random.default_rng(0).normal(size=(d, block))
    empty = jnp.zeros((d, 0), dtype), jnp.zeros((0, 0), dtype)
    return Basis(*empty, jax.device_put(start, matrix.sharding))


def _grown(matrix: Array, basis: Basis, size: int, trace: float) -> Basis:
    """The same basis with further blocks of columns, `size` columns in all."""
    filled, block = basis.columns.shape[1], basis.residual.shape[1]
    more = (0, size - filled)
    # Zero columns first, so that one program adds all the blocks.
    columns = jnp.pad(basis.columns, ((0, 0), more))
    basis = basis._replace(columns=columns, inner=jnp.pad(basis.inner, (more, more)))
    for start in range(filled, size, block):
        basis = _extended(matrix, basis, start, trace)
    return basis


@jax.jit
def _extended(matrix: Array, basis: Basis, start: Array, trace: Array) -> Basis:
    """One more block: the residual of the last one, made orthonormal."""
    V, T, R = basis
    # Where nothing is left of the residual, random directions take its place.
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), start), R.shape)
    X, _ = jnp.linalg.qr(R + trace * jnp.finfo(R.dtype).eps * noise)
    # Once more, as the first projection left rounding behind.
    X, _ = jnp.linalg.qr(X - _product(V, _product(V.T, X)))
    V = jax.lax.dynamic_update_slice_in_dim(V, X, start, axis=1)
    Y = _product(matrix, X)
    H = _product(V.T, Y)
    T = jax.lax.dynamic_update_slice_in_dim(T, H, start, axis=1)
    T = jax.lax.dynamic_update_slice_in_dim(T, H.T, start, axis=0)
    return Basis(V, T, Y - _product(V, H))


@jax.jit
def _pairs(basis: Basis) -> tuple[Array, Array, Array]:
    """Descending eigenvalues of `VT C V`, eigenvectors, and `|C u - s u|` of each."""
    values, vectors = jnp.linalg.eigh(basis.inner)
    values, vectors = values[::-1], vectors[:, ::-1]
    last = vectors[-basis.residual.shape[1] :]
    errors = jnp.linalg.norm(_product(basis.residual, last), axis=0)
    return values, vectors, errors


_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
