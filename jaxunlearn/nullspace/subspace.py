"""Which input directions of a weight are to be protected: bases and their ranks.

Host-side: a rank depends on the data, so nothing here can be traced.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.grams import Moment
from jaxunlearn.capture.layout import Layout, path_name
from jaxunlearn.nullspace.linalg import eigenpairs, float64, merged_pairs
from jaxunlearn.nullspace.rank_rules import RankRule, choose_rule
from jaxunlearn.nullspace.trees import (
    check_concrete,
    check_structure,
    leaf_test,
    map_leaves,
)

# A spectrum, descending, and the vectors that a rule keeps.
Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Subspace:
    """The protected input directions of one weight.

    Attributes:
      basis: orthonormal columns; zero columns are padding, where groups or stacked
        requests differ in rank.
      spectrum: all eigenvalues of the second moment, descending: always the *squares*
        of the rows' singular values, whichever way they were computed.
      layout: how the weight is read as matrices `[g, d, o]`.
    """

    # Any: JAX also rebuilds the record around shapes, axis numbers and None.
    basis: Float[Array, "*requests g d r"] | Any
    spectrum: Float[Array, "*requests g d"] | Any
    layout: Layout

    @property
    def ranks(self) -> Int[np.ndarray, "*requests g"]:
        """The rank of each group: columns that are no padding. Host-side."""
        return np.any(np.asarray(self.basis) != 0, axis=-2).sum(-1)

    def check(self, where: str, *, leading: bool = True) -> None:
        """Refuse a basis that is not `[g, d, r]` of the layout, naming `where` it is.

        With `leading`, leading axes are allowed.
        """
        layout, shape = self.layout, jnp.shape(self.basis)
        expected = f"({layout.groups}, {layout.fan_in}, rank)"
        if len(shape) > 3 and not leading:
            msg = (
                f"{where} have leading axes of classes or requests: the shape of their "
                f"basis is {shape}, and must be {expected}. Merge them with "
                "merge_subspaces, or take one at a time."
            )
            raise ValueError(msg)
        if shape[-3:-1] != (layout.groups, layout.fan_in):
            msg = f"{where}: the shape of the basis is {shape}, and its layout makes it end in {expected}. Take it from subspaces or row_subspaces."  # noqa: E501
            raise ValueError(msg)

    def columns(self, where: str) -> list[Float[np.ndarray, "d _"]]:
        """Of each group the columns without padding, in float64. Host-side.

        Refused if they are not orthonormal up to sqrt(eps) of the basis.
        """
        self.check(where)
        tolerance = float(jnp.finfo(self.basis.dtype).eps) ** 0.5
        *lead, d, r = self.basis.shape
        columns_of = []
        for basis in np.asarray(self.basis).reshape(math.prod(lead), d, r):
            columns = basis[:, np.any(basis != 0, axis=0)].astype(np.float64)
            gap = np.abs(columns.T @ columns - np.eye(columns.shape[1]))
            error = np.max(gap, initial=0)
            if not error <= tolerance:  # Written so that NaN is refused too.
                msg = f"{where}: the columns of the basis must be orthonormal or zero; they miss it by {error:.2g}. Take them from subspaces, row_subspaces or merge_subspaces."  # noqa: E501
                raise ValueError(msg)
            columns_of.append(columns)
        return columns_of


jax.tree_util.register_dataclass(
    Subspace, data_fields=["basis", "spectrum"], meta_fields=["layout"]
)


def subspaces(
    moments: PyTree,
    *,
    energy: float | None = None,
    rank: int | None = None,
    protected_fraction: float | None = None,
    rtol: float | None = None,
    mesh: Mesh | None = None,
) -> PyTree:
    """The leading eigenvectors of second moments, by exactly one rule.

    `C = U diag(s) UT`, of which the first `r` columns are kept. A moment cannot resolve
    directions below `sqrt(eps)` of its own dtype, relative to the largest singular
    value of the rows: 3.5e-4 in float32, 1.5e-8 in float64. `row_subspaces` can.

    Decompositions run in float64, those of different layers on different devices.

    Args:
      moments: like params: `Moment`, or None where a leaf has no input. A class axis
        may lead; each class then has a basis of its own.
      energy: in (0, 1]: the smallest `r` whose eigenvalues reach this share of the
        trace (gamma in UNSC); 1 keeps every eigenvalue that the moment resolves.
      rank: `r` itself, at most `d`.
      protected_fraction: in [0, 1]: `r = round(protected_fraction * d)`, halves to
        even; `1 - p` where CovarNav keeps a share `p` of null directions.
      rtol: in (0, 1): keep singular values of the *rows* above `rtol` times their
        largest, that is eigenvalues above `rtol**2` times theirs.
      mesh: over several processes: each decomposes its part of the layers, and all get
        everything, so that all must call with equal moments. None: this process alone.

    Returns:
      Like params: `Subspace` in the moment's dtype, or None. By `energy` or `rtol`, a
      moment of zero has rank 0.

    Raises:
      TypeError: a leaf is no `Moment`, or is traced, or `rank` is no integer.
      ValueError: not exactly one rule, a value out of range, an `rtol` that the moment
        cannot resolve, a moment that is not finite, or no moment at all.

    Source: CovarNav (arXiv 2311.12999), step 3; UNSC (arXiv 2404.13588), Alg. 1.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 5)).layout("dense", (), (0,), (1,))
    >>> gram = jnp.asarray([[[3.0, 0.0], [0.0, 1.0]]])
    >>> moments = {"kernel": Moment(gram, jnp.asarray(4.0), layout), "bias": None}
    >>> subspaces(moments, energy=0.75)["kernel"].basis.shape
    (1, 2, 1)
    """
    rule = choose_rule(energy, rank, protected_fraction, rtol)
    grams: dict[str, np.ndarray] = {}

    def check(name: str, moment: Moment) -> None:
        check_concrete(name, moment.gram, "choosing ranks")
        dtype = moment.gram.dtype
        resolved = math.sqrt(float(jnp.finfo(dtype).eps))
        if rule.name == "rtol" and rule.value < resolved:
            msg = (
                f"rtol is {rule.value}, and the moment of {name} is {dtype}, which "
                f"resolves singular values down to {resolved:.3g} of the largest. "
                "Raise rtol, or use row_subspaces, which never squares them."
            )
            raise ValueError(msg)
        grams[name] = host_grams(name, moment).reshape(moment.gram.shape)

    # All are checked before the first is decomposed.
    map_leaves(check, Moment, "moments", moments)
    return _decomposed((Moment, "moments", moments), grams, eigenpairs, rule, mesh)


def merge_subspaces(
    trees: Sequence[PyTree], *, energy: float, mesh: Mesh | None = None
) -> PyTree:
    """One subspace for several, such as those of the retained classes.

    The SVD of the concatenated bases, `[U_1 ... U_k] = Q diag(sigma) VT`, of which the
    fewest columns of `Q` are kept whose `sigma**2` reach `energy`. A direction counts
    by how many bases hold it, not by how much input it carries; for the latter, add the
    moments instead.

    Args:
      trees: like params each: `Subspace` or None. What leading axes hold is merged too.
      energy: in (0, 1], as in `subspaces`.
      mesh: as in `subspaces`.

    Returns:
      Like params: `Subspace`, whose spectrum is that of `sum(U_i U_iT)`, or None.

    Raises:
      TypeError: `trees` is no list or tuple, a leaf is no `Subspace`, or is traced.
      ValueError: no trees, an energy out of range, or trees or layouts that differ.

    Source: UNSC (arXiv 2404.13588), Alg. 2, Eqs. 8 to 11.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((3, 5)).layout("dense", (), (0,), (1,))
    >>> axes = [jnp.eye(3)[None, :, i : i + 2] for i in (0, 1)]
    >>> trees = [{"kernel": Subspace(axis, jnp.ones((1, 3)), layout)} for axis in axes]
    >>> merge_subspaces(trees, energy=0.7)["kernel"].spectrum
    Array([[2., 1., 1.]], dtype=float32)
    """
    rule = choose_rule(energy, None, None, None)
    if not isinstance(trees, list | tuple):
        msg = f"trees must be a list or tuple of trees like params; it is a {type(trees).__name__}. Wrap a single one: [tree]."  # noqa: E501
        raise TypeError(msg)
    if not trees:
        msg = "trees is empty: there is nothing to merge."
        raise ValueError(msg)
    for index, tree in enumerate(trees):
        check_structure("trees[0]", trees[0], f"trees[{index}]", tree, Subspace)
        check = functools.partial(_check_layouts, index)
        jax.tree.map_with_path(check, trees[0], tree, is_leaf=leaf_test(Subspace))

    columns: dict[str, np.ndarray] = {}

    def join(name: str, *records: Subspace) -> None:
        bases = []
        for record in records:
            check_concrete(name, record.basis, "choosing ranks")
            basis = np.asarray(record.basis)
            lead = math.prod(basis.shape[:-3])
            bases.extend(basis.reshape(lead, *basis.shape[-3:]))
        columns[name] = np.concatenate(bases, axis=-1)

    others = {f"trees[{index}]": tree for index, tree in enumerate(trees) if index}
    map_leaves(join, Subspace, "trees[0]", trees[0], **others)
    first = (Subspace, "trees[0]", trees[0])
    return _decomposed(first, columns, merged_pairs, rule, mesh)


def _decomposed(like, matrices, pairs_of, rule: RankRule, mesh) -> PyTree:
    """Like params: what the rule keeps of each leaf's `[*lead, d, n]`, by its path."""
    every = [ms[i] for ms in matrices.values() for i in np.ndindex(ms.shape[:-2])]
    sizes = [len(matrix) ** 2 * max(matrix.shape) for matrix in every]

    def kept(matrix: np.ndarray, device: jax.Device) -> Pair:
        return kept_pair(pairs_of(matrix, device), rule, matrix.dtype)

    if mesh is not None:
        parallel.axis_of(mesh)  # Or a sentence.
    pairs = iter(parallel.spread(kept, every, sizes, mesh))

    def record(name: str, first: Moment | Subspace) -> Subspace:
        whole = matrices.pop(name)
        own = [next(pairs) for _ in range(math.prod(whole.shape[:-2]))]
        return from_pairs(own, whole.shape[:-1], whole.dtype, first.layout)

    return map_leaves(record, *like)


def host_grams(name: str, moment: Moment, side: str = "inputs") -> np.ndarray:
    """A moment's grams as `[leading axes and groups, d, d]`, checked, on the host."""
    moment.check(name, side=side)
    grams = np.asarray(moment.gram).reshape(-1, *moment.gram.shape[-2:])
    if not np.all(np.isfinite(grams)):
        msg = f"{name}: its second moment is not finite. Look for NaN or overflow in the images or the network, and take the moments again."  # noqa: E501
        raise ValueError(msg)
    moment.check_positive(name)
    return grams


def _check_layouts(index: int, path, first: Any, other: Any) -> None:
    layouts = [getattr(record, "layout", None) for record in (first, other)]
    if layouts[0] != layouts[1]:
        msg = f"{path_name(path)}: trees[0] reads it as {layouts[0]} and trees[{index}] as {layouts[1]}. Merge subspaces of one network only."  # noqa: E501
        raise ValueError(msg)


def kept_pair(
    pair: Pair, rule: RankRule, dtype: Any, resolution: float | None = None
) -> Pair:
    """A spectrum, and of its vectors those that the rule keeps, in this dtype.

    What `rule.rank` takes for zero is by default what the dtype does not resolve.
    """
    spectrum, vectors = pair
    resolution = float(jnp.finfo(dtype).eps) if resolution is None else resolution
    # A copy, so that the other vectors may go.
    return spectrum, vectors[:, : rule.rank(spectrum, resolution)].astype(dtype)


def from_pairs(
    pairs: Sequence[Pair], shape: tuple[int, ...], dtype: Any, layout: Layout
) -> Subspace:
    """The record of these spectra and kept vectors, in order; spectrum of `shape`."""
    spectra, bases = zip(*pairs, strict=True)
    width = max(basis.shape[1] for basis in bases)
    padded = [np.pad(b, ((0, 0), (0, width - b.shape[1]))) for b in bases]
    with float64():
        basis = jnp.asarray(np.stack(padded).reshape(*shape, width), dtype)
        spectrum = jnp.asarray(np.stack(spectra).reshape(shape)).astype(dtype)
    return Subspace(basis, spectrum, layout)
