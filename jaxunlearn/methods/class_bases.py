"""Bases of single classes, merged for every request and stacked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn import parallel
from jaxunlearn.nullspace import linalg
from jaxunlearn.nullspace.moments import Moment, sum_classes
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.nullspace.subspace import Subspace, kept_pair, subspaces
from jaxunlearn.nullspace.trees import map_records

Sets = tuple[tuple[int, ...], ...]


def classes_of(moments: PyTree) -> tuple[int | str, ...]:
    """What the class axis of these moments holds."""
    is_moment = lambda node: isinstance(node, Moment)  # noqa: E731
    return jax.tree.leaves(moments, is_leaf=is_moment)[0].classes


def class_bases(
    moments: Iterable[PyTree], present: Sequence[int], rule: Mapping[str, Any]
) -> dict[int, PyTree]:
    """The subspaces of each class's inputs, on the host.

    Args:
      moments: with class axes that together hold every class.
      present: the classes of which there are samples.
      rule: the rank rule, as arguments of `subspaces`.
    """
    found = {}
    for part in moments:
        for c in classes_of(part):
            if c in present:
                found[c] = jax.device_get(subspaces(sum_classes(part, [c]), **rule))
    return found


def merged_bases(bases: dict[int, PyTree], sets: Sets, energy: float) -> PyTree:
    """For each request `merge_subspaces` of the classes that it retains.

    The squared singular values of `[U_1 ... U_k]` are the eigenvalues of
    `sum(U_i U_iT)`, from whose total over all classes a request takes its own: one
    eigendecomposition of `[d, d]` each, in float64, however many classes there are.
    """
    rule = choose_rule(energy, None, None, None)
    classes = list(bases)

    def merge(name: str, *records: Subspace) -> Subspace:
        del name
        layout, dtype = records[0].layout, records[0].basis.dtype
        resolution = float(jnp.finfo(dtype).eps)
        columns = {
            c: np.asarray(record.basis, np.float64)
            for c, record in zip(classes, records, strict=True)
        }
        total = _sum_of_products(columns.values())

        def decomposed(own: tuple[int, ...], device: jax.Device) -> list:
            gram = total - _sum_of_products(columns[c] for c in own)
            pairs = (linalg.eigenpairs(group, device) for group in gram)
            return [kept_pair(pair, rule, resolution, dtype) for pair in pairs]

        merged = []
        for pairs in parallel.spread(decomposed, sets, [1] * len(sets)):
            width = max(V.shape[1] for _, V in pairs)
            padded = [np.pad(V, ((0, 0), (0, width - V.shape[1]))) for _, V in pairs]
            spectrum = np.stack([values for values, _ in pairs])
            merged.append(Subspace(np.stack(padded), spectrum.astype(dtype), layout))
        return _stack(*merged)

    first, *others = bases.values()
    rest = {f"class {c}": tree for c, tree in zip(classes[1:], others, strict=True)}
    return map_records(merge, Subspace, f"class {classes[0]}", first, **rest)


def _sum_of_products(bases: Iterable[np.ndarray]) -> Any:
    """`sum(U UT)` of bases `[g, d, r]`."""
    return sum(U @ U.mT for U in bases)


def stacked(trees: Sequence[PyTree]) -> PyTree:
    """Trees of `Subspace`, one a request, as one with a leading request axis."""
    return jax.tree.map(_stack, *trees, is_leaf=lambda node: isinstance(node, Subspace))


def _stack(*records: Subspace) -> Subspace:
    """Bases padded with zero columns to the largest rank."""
    bases = [np.asarray(record.basis) for record in records]
    width = max(basis.shape[-1] for basis in bases)
    padded = [
        np.pad(b, [*[(0, 0)] * (b.ndim - 1), (0, width - b.shape[-1])]) for b in bases
    ]
    spectra = np.stack([np.asarray(record.spectrum) for record in records])
    return Subspace(np.stack(padded), spectra, records[0].layout)
