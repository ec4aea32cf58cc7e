"""Spectra of what a layer is fed, and how far its outputs have drifted."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn.capture.layout import path_name
from jaxunlearn.methods.multiply_adds import Costs
from jaxunlearn.metrics.layer_features import feature_layers
from jaxunlearn.nullspace.moments import Moment, second_moments
from jaxunlearn.nullspace.projection import drift
from jaxunlearn.nullspace.trees import leaf_test
from jaxunlearn.report.contents import Contents, MissingError
from jaxunlearn.report.limits import Limits
from jaxunlearn.report.outputs import part

# Half a minute of two cores.
_MULTIPLY_ADDS = 4e11
_FEWEST = 32
# Wider layers take longer to decompose than all else on the page.
_WIDEST = 2048


class Statistics(NamedTuple):
    """Of the original's layers, in the order in which they are used.

    Attributes:
      samples: how many retained training samples were read.
      layers: paths of the weights.
      spectra: by path, eigenvalues of the inputs' second moment as shares of its trace,
        descending, means over groups; None where the layer is too wide.
      drifts: by model and path.
    """

    samples: int
    layers: list[str]
    spectra: Mapping[str, np.ndarray | None]
    drifts: Mapping[str, Mapping[str, float]]


def statistics(contents: Contents, limits: Limits) -> Statistics:
    """Second moments of retained samples, and what they say."""
    original = contents.original.classifier
    if original is None:
        raise MissingError(contents.absent)
    retain = contents.data.retain
    each = Costs(original, retain.images).moments()
    most = min(limits.samples, int(_MULTIPLY_ADDS / max(each, 1)))
    if most < _FEWEST:
        msg = (
            f"Second moments of {_FEWEST} images of this network take "
            f"{_FEWEST * each:.1g} multiply-adds, which is more than a page may take. "
            "ju.second_moments and ju.drift compute them."
        )
        raise MissingError(msg)
    read = part(retain, most)
    moments = second_moments(original, read.images)
    by_path = {path: m for path, m in _leaves(moments) if isinstance(m, Moment)}
    order = [p for p in feature_layers(original, retain.images) if p in by_path]
    return Statistics(
        len(read),
        order,
        {path: _spectrum(by_path[path]) for path in order},
        {
            model.name: {p: float(x) for p, x in _leaves(found) if x is not None}
            for model in contents.of("unlearned", "retrained")
            if (found := _drift(moments, original, model.classifier)) is not None
        },
    )


def _drift(moments, original, classifier):
    """None where a method has changed the network itself."""
    if classifier is None:
        return None
    trees = original.params, classifier.params
    shapes = [jax.tree.map(np.shape, tree) for tree in trees]
    if shapes[0] != shapes[1]:
        return None
    # One program instead of one for each operation.
    return jax.jit(drift)(moments, *trees)


def _leaves(tree):
    leaves = jax.tree.leaves_with_path(tree, is_leaf=leaf_test(Moment))
    return [(path_name(path), leaf) for path, leaf in leaves]


def _spectrum(moment: Moment) -> np.ndarray | None:
    gram = np.asarray(moment.gram, np.float64)
    if gram.shape[-1] > _WIDEST:
        return None
    values = np.linalg.eigvalsh((gram + gram.swapaxes(-1, -2)) / 2)[:, ::-1]
    values = np.maximum(values, 0)
    traces = np.maximum(values.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return (values / traces).mean(axis=0)
