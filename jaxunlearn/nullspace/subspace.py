"""Which input directions of a weight are to be protected: bases and their ranks.

Host-side: a rank depends on the data, so nothing here can be traced.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.inputs import LayerInput, layer_inputs
from jaxunlearn.capture.layout import Layout, path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.batches import Images, first_images, full_batches
from jaxunlearn.nullspace.moments import Moment
from jaxunlearn.nullspace.partial_eigen import FULL_UP_TO, leading_eigenpairs
from jaxunlearn.nullspace.rank_rules import Rule, choose_rule
from jaxunlearn.nullspace.trees import (
    check_concrete,
    check_structure,
    leaf_test,
    map_records,
)

Solver = Literal["auto", "full", "partial"]


@dataclasses.dataclass(frozen=True)
class Subspace:
    """The protected input directions of one weight.

    Attributes:
      basis: orthonormal columns; zero columns are padding, where groups or stacked
        requests differ in rank.
      spectrum: all eigenvalues of the second moment, descending: always the *squares*
        of the rows' singular values, whichever way they were found. Where a partial
        solver found the leading ones alone, the others are given as their mean, so that
        the spectrum still descends, adds up to the trace and holds what `basis` does.
      layout: how the weight is read as matrices `[g, d, o]`.
    """

    # Any: JAX also rebuilds the record around shapes, axis numbers and None.
    basis: Float[Array, "*requests g d r"] | Any
    spectrum: Float[Array, "*requests g d"] | Any
    layout: Layout

    @property
    def ranks(self) -> Int[np.ndarray, "*requests g"]:
        """Columns of each group that are not padding."""
        return np.any(np.asarray(self.basis) != 0, axis=-2).sum(axis=-1)


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
    solver: str = "auto",
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
      solver: "full" finds all eigenvectors. "partial" finds the leading ones by a block
        Krylov method, up to the rounding of the moment, where `r` is a small share of
        `d`, and else does as "full". "auto" is "full" up to a `d` of 4608, "partial"
        above.
      mesh: over several processes: each decomposes its part of the layers, and all get
        everything, so that all must call with equal moments. None: this process alone.

    Returns:
      Like params: `Subspace` in the moment's dtype, or None. By `energy` or `rtol`, a
      moment of zero has rank 0.

    Raises:
      TypeError: a leaf is no `Moment`, or is traced, or `rank` is no integer.
      ValueError: not exactly one rule, a value out of range, an `rtol` that the moment
        cannot resolve, a moment that is not finite, no moment at all, or no such
        solver.

    Source: CovarNav (arXiv 2311.12999), step 3; UNSC (arXiv 2404.13588), Alg. 1.

    >>> from jaxunlearn.capture.layout import View
    >>> layout = View((2, 5)).layout("dense", (), (0,), (1,))
    >>> gram = jnp.asarray([[[3.0, 0.0], [0.0, 1.0]]])
    >>> moments = {"kernel": Moment(gram, jnp.asarray(4.0), layout), "bias": None}
    >>> subspaces(moments, energy=0.75)["kernel"].basis.shape
    (1, 2, 1)
    """
    rule = choose_rule(energy, rank, protected_fraction, rtol)
    if solver not in Solver.__args__:
        msg = f'solver must be "auto", "full" or "partial"; it is {solver!r}.'
        raise ValueError(msg)
    # All are checked before the first is decomposed.
    works: dict[str, list[_Work]] = {}

    def check(name: str, moment: Moment) -> None:
        check_concrete(name, moment.gram, "choosing ranks")
        resolution = _resolution(name, moment, rule)
        grams = host_grams(name, moment)
        works[name] = [_Work(gram, rule, resolution, solver) for gram in grams]

    map_records(check, Moment, "moments", moments)
    every = [work for some in works.values() for work in some]
    sizes = [len(work.gram) ** 3 for work in every]
    found = iter(parallel.spread(_Work.kept, every, sizes, mesh))

    def basis(name: str, moment: Moment) -> Subspace:
        pairs = [next(found) for _ in works[name]]
        gram = moment.gram
        return _subspace(pairs, gram.shape[:-1], gram.dtype, moment.layout)

    return map_records(basis, Moment, "moments", moments)


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """One decomposition to be made."""

    gram: np.ndarray
    rule: Rule
    resolution: float
    solver: str

    def kept(self, device: jax.Device) -> tuple[np.ndarray, np.ndarray]:
        """The spectrum, and the eigenvectors that the rule keeps."""
        rule, resolution = self.rule, self.resolution
        large = len(self.gram) > FULL_UP_TO
        if self.solver == "partial" or (self.solver == "auto" and large):
            found = leading_eigenpairs(self.gram, rule, resolution, device)
            if found is not None:
                spectrum, vectors = found
                return spectrum, vectors.astype(self.gram.dtype)
        pair = linalg.eigenpairs(self.gram, device)
        return kept_pair(pair, rule, resolution, self.gram.dtype)


def _resolution(name: str, moment: Moment, rule: Rule) -> float:
    """`eps` of a moment, which the rule must not ask more of."""
    dtype = moment.gram.dtype
    resolution = float(jnp.finfo(dtype).eps)
    if rule.name == "rtol" and rule.value < math.sqrt(resolution):
        msg = (
            f"rtol is {rule.value}, and the moment of {name} is {dtype}, which "
            f"resolves singular values down to {math.sqrt(resolution):.3g} of the "
            "largest. Raise rtol, or use row_subspaces, which never squares them."
        )
        raise ValueError(msg)
    return resolution


def row_subspaces(
    classifier: Classifier,
    images: Images,
    *,
    energy: float | None = None,
    rank: int | None = None,
    protected_fraction: float | None = None,
    rtol: float | None = None,
    batch_size: int = 256,
) -> PyTree:
    """The right singular vectors of the layer inputs themselves.

    Streaming QR, `R <- qr([R; rows])`, then `R = V diag(sigma) UT`, all in float64. No
    product of rows is formed and no condition number squared: twice the digits of
    `subspaces`, at the price of explicit rows, one batch at a time.

    Args:
      classifier: read in inference mode.
      images: `[n, h, w, c]`, or a re-iterable of such batches.
      energy: as in `subspaces`; 1 keeps all but the rounding of the rows.
      rank: as in `subspaces`.
      protected_fraction: as in `subspaces`.
      rtol: in (0, 1), however small.
      batch_size: images at a time.

    Returns:
      Like params: `Subspace` in the layer inputs' dtype, or None.

    Raises:
      TypeError: what `second_moments` refuses, or `rank` is no integer.
      ValueError: not exactly one rule, a value out of range, what `layer_inputs`
        refuses, or layer inputs that are not finite.

    Source: UNSC (arXiv 2404.13588), Alg. 1, the SVD taken batch by batch.

    >>> import flax.linen as nn
    >>> from jaxunlearn.classifier.classifier import freeze
    >>> class Linear(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, images):
    ...         return nn.Dense(3)(images.reshape(len(images), -1))
    >>> images = jnp.arange(8.0).reshape(2, 2, 2, 1)
    >>> classifier = freeze(Linear(), Linear().init(jax.random.key(0), images))
    >>> row_subspaces(classifier, images, rtol=1e-6)["Dense_0"]["kernel"].basis.shape
    (1, 4, 2)
    """
    rule = choose_rule(energy, rank, protected_fraction, rtol)
    triangles: dict[str, list[Array | np.ndarray]] = {}

    def absorb(name: str, rows: LayerInput) -> LayerInput:
        # Square from the start: a triangle that grew would compile for every size.
        empty = [np.zeros((rows.layout.fan_in,) * 2)] * rows.layout.groups
        pairs = zip(triangles.get(name, empty), rows.inputs, strict=True)
        triangles[name] = [linalg.absorb(*pair) for pair in pairs]
        # No row is needed any more, only their dtype.
        return dataclasses.replace(rows, inputs=rows.inputs[:, :0])

    if batch_size < 1:
        msg = f"batch_size must be at least 1; it is {batch_size}."
        raise ValueError(msg)
    sample = first_images(classifier, images, labelled=False)
    seen = None
    for batch in full_batches(images, np.zeros(len(sample), int), batch_size):
        rows = _layer_inputs(classifier, batch.images[: batch.count])
        seen = map_records(absorb, LayerInput, "the layer inputs", rows)

    def basis(name: str, rows: LayerInput) -> Subspace:
        layout, dtype = rows.layout, rows.inputs.dtype
        columns = [np.asarray(triangle).T for triangle in triangles.pop(name)]
        if not all(np.all(np.isfinite(group)) for group in columns):
            msg = f"{name}: its inputs are not finite. Look for NaN or overflow in the images or the network."  # noqa: E501
            raise ValueError(msg)
        # Rounding each entry to eps makes singular values of some sqrt(d) eps.
        resolution = layout.fan_in * float(jnp.finfo(dtype).eps) ** 2
        shape = (layout.groups, layout.fan_in)
        pairs = map(linalg.singular_pairs, columns)
        kept = [kept_pair(pair, rule, resolution, dtype) for pair in pairs]
        return _subspace(kept, shape, dtype, layout)

    return map_records(basis, LayerInput, "the layer inputs", seen)


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
    map_records(join, Subspace, "trees[0]", trees[0], **others)
    every = [group for groups in columns.values() for group in groups]
    sizes = [len(group) ** 2 * max(group.shape) for group in every]
    work = functools.partial(_merged, rule)
    found = iter(parallel.spread(work, every, sizes, mesh))

    def basis(name: str, first: Subspace) -> Subspace:
        groups = columns.pop(name)
        pairs = [next(found) for _ in groups]
        return _subspace(pairs, groups.shape[:2], groups.dtype, first.layout)

    return map_records(basis, Subspace, "trees[0]", trees[0])


def _merged(
    rule: Rule, columns: np.ndarray, device: jax.Device
) -> tuple[np.ndarray, np.ndarray]:
    """The spectrum of several bases' columns, and the vectors that the rule keeps."""
    pair = linalg.merged_pairs(columns, device)
    resolution = float(jnp.finfo(columns.dtype).eps)
    return kept_pair(pair, rule, resolution, columns.dtype)


def host_grams(name: str, moment: Moment) -> np.ndarray:
    """A moment's grams as `[leading axes and groups, d, d]`, checked, on the host."""
    layout, shape = moment.layout, moment.gram.shape
    expected = (layout.groups, layout.fan_in, layout.fan_in)
    if shape[-3:] != expected:
        msg = f"{name}: the shape of its moment is {shape}, and its layout makes it end in {expected}."  # noqa: E501
        raise ValueError(msg)
    grams = np.asarray(moment.gram).reshape(-1, *expected[1:])
    if not np.all(np.isfinite(grams)):
        msg = f"{name}: its second moment is not finite. Look for NaN or overflow in the images or the network, and take the moments again."  # noqa: E501
        raise ValueError(msg)
    return grams


def _check_layouts(index: int, path, first: Any, other: Any) -> None:
    layouts = [getattr(record, "layout", None) for record in (first, other)]
    if layouts[0] != layouts[1]:
        msg = f"{path_name(path)}: trees[0] reads it as {layouts[0]} and trees[{index}] as {layouts[1]}. Merge subspaces of one network only."  # noqa: E501
        raise ValueError(msg)


def kept_pair(
    pair: tuple[np.ndarray, np.ndarray], rule: Rule, resolution: float, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """A spectrum, and of its vectors those that the rule keeps, in this dtype."""
    spectrum, vectors = pair
    # A copy, so that the other vectors may go.
    return spectrum, vectors[:, : rule.rank(spectrum, resolution)].astype(dtype)


def _subspace(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, ...],
    dtype: Any,
    layout: Layout,
) -> Subspace:
    """The record of these spectra and kept vectors, in order; spectrum of `shape`."""
    spectra, bases = zip(*pairs, strict=True)
    width = max(basis.shape[1] for basis in bases)
    padded = [np.pad(b, ((0, 0), (0, width - b.shape[1]))) for b in bases]
    with linalg.float64():
        basis = jnp.asarray(np.stack(padded).reshape(*shape, width), dtype)
        spectrum = jnp.asarray(np.stack(spectra).reshape(shape)).astype(dtype)
    return Subspace(basis, spectrum, layout)


@jax.jit
def _layer_inputs(classifier: Classifier, images: Array) -> PyTree:
    return layer_inputs(classifier, images)
