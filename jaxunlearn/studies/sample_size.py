"""How many retained images the subspaces of a null-space method need."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from jaxunlearn.augmentation import random_crop
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.metrics.representation import captured_energy, subspace_overlap
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.nullspace.subspace import subspaces
from jaxunlearn.studies.given import Given, Rows, stratified
from jaxunlearn.tasks import Data


def sample_size(
    given: Given,
    *,
    sizes: Sequence[int],
    draws: int = 1,
    copies: int = 0,
    padding: int = 1,
    energy: float = 0.99,
) -> Rows:
    """Subspaces and accuracies from so many retained images, beside those from all.

    Every method keeps the value of its grid that all retained images give, so that
    nothing differs but the images its subspace is of.

    Args:
      given: of one training seed.
      sizes: numbers of retained images, of every class alike.
      draws: independent draws of each number; means over them.
      copies: also with so many random crops of each drawn image besides; 0: not.
      padding: of those crops, in pixels.
      energy: the rank rule by which subspaces are compared.

    Returns:
      By "METHOD, SIZE" (", cropped" behind it with copies): "accuracy/retained",
      "accuracy/forgotten", and of the subspace of that many images "rank" (mean over
      layers), "captured_energy" (of all retained inputs, mean over layers) and
      "overlap" (share of the smaller subspace that lies in the other, likewise).
    """
    forget, retain = given.parts
    methods = {title: given.tuned(title) for title in given.methods}
    moments = second_moments(given.original, retain.images)
    whole = subspaces(moments, energy=energy)
    rows: Rows = {}

    def add(name: str, drawn: list[Data]) -> None:
        about = [_subspace(given, some, moments, whole, energy) for some in drawn]
        for title, method in methods.items():
            models = [given.forget(method, forget, some).classifier for some in drawn]
            ends = [evaluate(model, given.test, given.classes) for model in models]
            rows[f"{title}, {name}"] = {
                "accuracy/retained": _mean(end.retained for end in ends),
                "accuracy/forgotten": _mean(end.forgotten for end in ends),
                **{key: _mean(one[key] for one in about) for key in about[0]},
            }

    for size in sizes:
        rows_of = [stratified(retain.labels, size, draw) for draw in range(draws)]
        drawn = [retain.take(chosen) for chosen in rows_of]
        add(str(size), drawn)
        if copies:
            crops = [_cropped(some, copies, padding, given.key) for some in drawn]
            add(f"{size}, cropped", crops)
    add("all", [retain])
    return rows


def _subspace(given, some: Data, moments, whole, energy) -> dict[str, float]:
    """That of the inputs of these images, beside the one of all."""
    found = subspaces(second_moments(given.original, some.images), energy=energy)
    ranks = jax.tree.map(
        lambda subspace: float(np.any(subspace.basis != 0, axis=-2).sum(-1).mean()),
        found,
        is_leaf=lambda node: hasattr(node, "basis"),
    )
    return {
        "rank": _over_layers(ranks),
        "captured_energy": _over_layers(captured_energy(found, moments)),
        "overlap": _over_layers(subspace_overlap(found, whole)),
    }


def _cropped(data: Data, copies: int, padding: int, key) -> Data:
    """The images and random crops of them, each with its label."""
    crops = [
        np.asarray(random_crop(jax.random.fold_in(key, n), data.images, padding))
        for n in range(copies)
    ]
    labels = np.tile(data.labels, copies + 1)
    return Data(np.concatenate([data.images, *crops]), labels, data.class_names)


def _over_layers(tree: PyTree) -> float:
    values = np.asarray(jax.tree.leaves(jax.device_get(tree)), float)
    return float(values[~np.isnan(values)].mean())


def _mean(values) -> float:
    return float(np.mean([*values]))
