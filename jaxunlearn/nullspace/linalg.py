"""Decompositions in float64, one matrix at a time, on concrete arrays.

They run where `parallel.linear_algebra_devices` says, even while a trace is under way
(as when a transform is built inside one); results are NumPy arrays.
"""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxunlearn.parallel import linear_algebra_devices


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """A scope in which JAX computes at once, and float64 exists."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        yield


def eigenpairs(
    gram: Array | np.ndarray, device: jax.Device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Descending eigenvalues (clipped at zero) and eigenvectors of `gram [d, d]`."""
    with float64():
        values, vectors = jnp.linalg.eigh(placed(gram, device))
    return np.maximum(np.asarray(values)[::-1], 0), np.asarray(vectors)[:, ::-1]


def singular_pairs(
    columns: np.ndarray, device: jax.Device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Descending *squared* singular values `[d]` and left vectors of `[d, n]`."""
    d, n = columns.shape
    # Zero columns make the vectors a whole basis of R^d.
    columns = np.pad(columns, ((0, 0), (0, max(d - n, 0))))
    with float64():
        vectors, sigma, _ = jnp.linalg.svd(placed(columns, device), full_matrices=False)
    return np.asarray(sigma) ** 2, np.asarray(vectors)


def merged_pairs(
    columns: np.ndarray, device: jax.Device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`singular_pairs` of the concatenated columns of several bases `[d, n]`.

    From single precision their squares lose nothing in float64, and `eigh` of one
    `[d, d]` product is many times faster than the SVD of a wide matrix.
    """
    d, n = columns.shape
    if n <= d or columns.dtype != np.float32:
        return singular_pairs(columns, device)
    with float64():
        wide = placed(columns, device)
        product = jnp.matmul(wide, wide.T, precision=jax.lax.Precision.HIGHEST)
        return eigenpairs(product, device)


def complement(columns: np.ndarray) -> np.ndarray:
    """Orthonormal `[d, d - r]`, orthogonal to the span of `columns [d, r]`."""
    d, r = columns.shape
    # Square, so that one program serves every rank; zero columns reflect nothing.
    square = np.pad(columns, ((0, 0), (0, d - r)))
    with float64():
        q, _ = jnp.linalg.qr(placed(square))
    return np.asarray(q)[:, r:]


def absorb(
    triangle: Array | np.ndarray, rows: Float[Array, "n d"]
) -> Array | np.ndarray:
    """`R` of `[triangle; rows]`, float64 `[d, d]` on the device; triangle is `[m, d]`.

    Rows are taken in pieces of 32 MB, so that no float64 copy of them all is made.
    """
    d = rows.shape[1]
    piece = max(2 * d, 2**22 // d)
    for start in range(0, rows.shape[0], piece):
        with float64():
            part = placed(rows[start : start + piece])
            stacked = jnp.concatenate([placed(triangle), part])
            triangle = jnp.linalg.qr(stacked, mode="r")
    return triangle


def placed(array: Array | np.ndarray, device: jax.Device | None = None) -> Array:
    """In float64 on a device, by default the one for decompositions."""
    device = linear_algebra_devices()[0] if device is None else device
    return jax.device_put(array, device).astype(jnp.float64)
