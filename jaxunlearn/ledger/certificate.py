"""How far the outputs of every weight moved on retained inputs, and what says nothing.

Moments are those of the classifier that the ledger was opened with: of its layer inputs
on the retained classes, and not of what earlier requests have made of them.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.methods.statistics import remaining
from jaxunlearn.nullspace.moments import sum_classes
from jaxunlearn.nullspace.projection import drift


def certificate(
    class_moments: PyTree,
    forgotten: tuple[int, ...],
    base: Classifier,
    before: Classifier,
    after: Classifier,
) -> dict[str, Any]:
    """The drifts of this request and since the base, on what is retained after it.

        sqrt(tr(dWT C dW) / tr(WT C W)),   C = sum of the retained classes' moments

    with `dW = after - before, W = before` now, and `after - base` and `base`
    accumulated.

    Returns:
      "now" and "accumulated" by layer; "outside", the leaves that moved, now or since
      the base, and have no moment; "warning", a sentence about them, or "".
    """
    retained = sum_classes(class_moments, remaining(class_moments, forgotten))
    retained = jax.tree.map(jnp.asarray, retained)
    found: dict[str, Any] = {
        "now": by_path(drift(retained, before.params, after.params)),
        "accumulated": by_path(drift(retained, base.params, after.params)),
    }
    covered = set(found["now"])
    moved = {
        name
        for old in (before, base)
        for name, distance in differences(old, after).items()
        if distance > 0 and name not in covered
    }
    found["outside"] = sorted(moved)
    found["warning"] = ""
    if moved:
        shown = ", ".join(sorted(moved)[:5])
        more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
        found["warning"] = (
            f"{shown}{more} moved, such as biases do under some methods, and have no "
            "moment: what that does to retained outputs lies outside the certificate."
        )
    return found


def by_path(tree: PyTree) -> dict[str, float]:
    """The numbers of a tree like params by the paths of their leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {path_name(where): float(value) for where, value in leaves}


def differences(one: Classifier, other: Classifier) -> dict[str, float]:
    """The largest difference in every leaf of parameters and state; 0 of equal bits.

    Bits that differ in a leaf of equal values, such as those of -0, count as a
    difference of the smallest number.
    """
    return dict(_differences(one, other))


def _differences(one: Classifier, other: Classifier) -> Iterator[tuple[str, float]]:
    for part, prefix in (("params", ""), ("state", "state/")):
        ours, theirs = (
            jax.tree_util.tree_leaves_with_path(getattr(side, part))
            for side in (one, other)
        )
        for (where, a), (_, b) in zip(ours, theirs, strict=True):
            yield f"{prefix}{path_name(where)}", _distance(a, b)


def _distance(a: Any, b: Any) -> float:
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    a, b = np.asarray(a), np.asarray(b)
    if a.tobytes() == b.tobytes():
        return 0.0
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
    return float(max(difference, np.finfo(np.float64).tiny))
