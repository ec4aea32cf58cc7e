"""A model under audit: its outputs and features, each computed once."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from scipy.special import softmax

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.layer_features import all_features, feature_layers
from jaxunlearn.tasks import Data

# Training samples that probes, class means and prototypes are taken from.
PROBE_SAMPLES = 10_000


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
        self.probed = train
        if len(train) > PROBE_SAMPLES:
            seed = jax.random.key_data(jax.random.fold_in(key, 0)).ravel().tolist()
            order = np.random.default_rng(seed).permutation(len(train))
            rows = np.sort(order[:PROBE_SAMPLES])
            self.probed = Data(train.images[rows], train.labels[rows])

    @functools.cached_property
    def forgotten(self) -> Int[np.ndarray, " n"]:
        """Which test samples belong to the forgotten classes."""
        return np.flatnonzero(np.isin(self.test.labels, self.forget_classes))

    @functools.cached_property
    def retained(self) -> Int[np.ndarray, " n"]:
        """Which test samples belong to the others."""
        return np.flatnonzero(~np.isin(self.test.labels, self.forget_classes))


class Subject:
    """One model: logits and features of the samples, computed when first asked for."""

    def __init__(self, classifier: Classifier, samples: Samples, mesh: Mesh | None):
        self.classifier, self.samples, self._mesh = classifier, samples, mesh

    @functools.cached_property
    def logits(self) -> Float[np.ndarray, "n k"]:
        """Of the test samples."""
        return logits(self.classifier, self.samples.test.images, mesh=self._mesh)

    @functools.cached_property
    def train_logits(self) -> Float[np.ndarray, "n k"]:
        """Of the probed training samples."""
        return logits(self.classifier, self.samples.probed.images, mesh=self._mesh)

    @functools.cached_property
    def forget_logits(self) -> Float[np.ndarray, "n k"]:
        """Of the forgotten training samples."""
        return logits(self.classifier, self.samples.forget.images, mesh=self._mesh)

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
