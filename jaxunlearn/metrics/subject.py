"""A model under audit: its outputs and features, each computed once."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, PyTree
from scipy.special import softmax

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.metrics.boundary import (
    Boundary,
    Neighbourhood,
    boundary_images,
)
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.layer_features import all_features, feature_layers
from jaxunlearn.metrics.relearning import rows_of
from jaxunlearn.metrics.shifts import SHIFTS, shifted_images
from jaxunlearn.nullspace import second_moments
from jaxunlearn.tasks import Data

# Training samples that probes, class means and prototypes are taken from.
PROBE_SAMPLES = 10_000
# Where over-unlearning is measured.
NEIGHBOURHOOD = Neighbourhood()


class Samples:
    """What all models of an audit are judged on.

    Attributes:
      train: the full training set, forgotten samples included.
      test: of all classes.
      forget_classes: a tuple of class numbers.
      forget: the forgotten samples, where samples and not classes are forgotten.
      probed: at most `PROBE_SAMPLES` of `train`, the same for all models.
      key: for all that is drawn.
    """

    def __init__(
        self,
        train: Data,
        test: Data,
        forget_classes: Sequence[int],
        forget: Data | None,
        key: Any,
    ):
        self.train, self.test = train, test
        self.forget_classes = tuple(forget_classes)
        self.forget, self.key = forget, key
        self._rows = np.arange(len(train))
        if len(train) > PROBE_SAMPLES:
            seed = jax.random.key_data(jax.random.fold_in(key, 0)).ravel().tolist()
            order = np.random.default_rng(seed).permutation(len(train))
            self._rows = np.sort(order[:PROBE_SAMPLES])
        whole = len(self._rows) == len(train)
        self.probed = train if whole else train.take(self._rows)

    @functools.cached_property
    def forgotten(self) -> Int[np.ndarray, " n"]:
        """Which test samples belong to the forgotten classes."""
        return np.flatnonzero(np.isin(self.test.labels, self.forget_classes))

    @functools.cached_property
    def retained(self) -> Int[np.ndarray, " n"]:
        """Which test samples belong to the others."""
        return np.flatnonzero(~np.isin(self.test.labels, self.forget_classes))

    @property
    def fresh(self) -> Int[np.ndarray, " n"]:
        """Test samples like the forgotten ones: of their classes, or all."""
        return self.retained if self.forget is not None else self.forgotten

    @functools.cached_property
    def probed_gone(self) -> Bool[np.ndarray, " n"]:
        """Which of the probed samples were to be forgotten."""
        if self.forget is None:
            return np.isin(self.probed.labels, self.forget_classes)
        return rows_of(self.train, self.forget)[self._rows]

    @functools.cached_property
    def gone(self) -> Data:
        """The forgotten samples; of classes those that are probed."""
        if self.forget is not None:
            return self.forget
        return self.probed.take(self.probed_gone)

    @functools.cached_property
    def shifted(self) -> dict[str, np.ndarray]:
        """The test images under every shift."""
        key = jax.random.fold_in(self.key, 5)
        return {n: shifted_images(self.test.images, n, key=key) for n in SHIFTS}


class Subject:
    """One model: logits and features of the samples, computed when first asked for."""

    def __init__(self, classifier: Classifier, samples: Samples, mesh: Mesh | None):
        self.classifier, self.samples, self._mesh = classifier, samples, mesh

    @functools.cached_property
    def logits(self) -> Float[np.ndarray, "n k"]:
        """Of the test samples."""
        return logits(self.classifier, self.samples.test.images, mesh=self._mesh)

    @functools.cached_property
    def shifted_logits(self) -> dict[str, Float[np.ndarray, "n k"]]:
        """Of the shifted test images, by shift."""
        classifier, shifted = self.classifier, self.samples.shifted
        return {n: logits(classifier, x, mesh=self._mesh) for n, x in shifted.items()}

    @functools.cached_property
    def train_logits(self) -> Float[np.ndarray, "n k"]:
        """Of the probed training samples."""
        return logits(self.classifier, self.samples.probed.images, mesh=self._mesh)

    @functools.cached_property
    def forget_logits(self) -> Float[np.ndarray, "n k"]:
        """Of the forgotten samples, where samples were forgotten."""
        return logits(self.classifier, self.samples.forget.images, mesh=self._mesh)

    @property
    def gone_logits(self) -> Float[np.ndarray, "n k"]:
        """Of `samples.gone`."""
        if self.samples.forget is not None:
            return self.forget_logits
        return self.train_logits[self.samples.probed_gone]

    @functools.cached_property
    def forget_probabilities(self) -> Float[np.ndarray, "n k"]:
        """Of the forgotten samples, in float64."""
        return softmax(np.asarray(self.forget_logits, np.float64), axis=1)

    @functools.cached_property
    def retained_moments(self) -> PyTree:
        """Second moments of the layer inputs, of the probed samples that are kept."""
        kept = self.samples.probed.images[~self.samples.probed_gone]
        return second_moments(self.classifier, kept, mesh=self._mesh)

    @functools.cached_property
    def boundary(self) -> Boundary:
        """Forgotten samples near this model's decision boundary."""
        return boundary_images(
            self.classifier,
            self.samples.gone,
            self.samples.forget_classes,
            protocol=NEIGHBOURHOOD,
            key=jax.random.fold_in(self.samples.key, 4),
        )

    @functools.cached_property
    def layers(self) -> list[str]:
        """Paths of the weights whose inputs are features, in order of use."""
        return feature_layers(self.classifier, self.samples.test.images)

    @functools.cached_property
    def features(self) -> dict[str, Float[np.ndarray, "n d"]]:
        """Of the test samples, by layer."""
        return all_features(self.classifier, self.samples.test.images)

    @functools.cached_property
    def train_features(self) -> dict[str, Float[np.ndarray, "n d"]]:
        """Of the probed training samples, by layer."""
        return all_features(self.classifier, self.samples.probed.images)

    @functools.cached_property
    def probabilities(self) -> Float[np.ndarray, "n k"]:
        """Of the test samples, in float64."""
        return softmax(np.asarray(self.logits, np.float64), axis=1)


def title_of_layer(path: str) -> str:
    """How rows call a layer: by its path, "kernel" left out.

    >>> title_of_layer("Conv_0/kernel")
    'Conv_0'
    """
    return path.removesuffix("/kernel")
