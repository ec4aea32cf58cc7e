"""What can be read off features: probes, nearest means, neighbours, a prototype attack.

Features and labels of training samples of *all* classes, forgotten ones included, go
in; the target is what the same probe reads off a retrained model's features.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxunlearn.checks import check_count, check_labels
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.metrics.accuracy import class_accuracy, confusion_matrix
from jaxunlearn.metrics.evaluation import logits as logits_of
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.metrics.layer_features import features as features_of
from jaxunlearn.tasks import Data, check_classes

# Mixtures of a head's row with a prototype; the attacker takes the best.
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def linear_probe(
    features: Any,
    labels: Any,
    test_features: Any,
    *,
    l2: float | None = None,
) -> Int[np.ndarray, " m"]:
    """Classes that multinomial logistic regression reads off features.

        min_W,b  mean_i -log softmax(W x_i + b)_{y_i} + l2 / 2 |W|^2

    Features are standardised by the training ones (a constant feature is left out of
    it); L-BFGS runs to convergence, on the host in float64.

    Args:
      features: of training samples of all classes.
      labels: their classes.
      test_features: of the samples to predict.
      l2: None is 1 / n, scikit-learn's C = 1.

    Returns:
      Predicted classes.

    Raises:
      TypeError: labels are not integers.
      ValueError: shapes do not fit, a feature is not finite, fewer than two classes, or
        l2 is not positive.

    >>> x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> linear_probe(x, np.array([3, 3, 5, 5]), np.array([[-3.0], [4.0]])).tolist()
    [3, 5]
    """
    from sklearn.linear_model import LogisticRegression

    x, y, test = _checked(features, labels, test_features)
    l2 = 1 / len(x) if l2 is None else float(l2)
    if not l2 > 0:
        msg = f"l2 must be positive, so that the best weights are finite; it is {l2}."
        raise ValueError(msg)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-6, max_iter=5000)
    model.fit((x - mean) / deviation, y)
    return model.predict((test - mean) / deviation)


def class_mean_predictions(
    features: Any,
    labels: Any,
    test_features: Any,
) -> Int[np.ndarray, " m"]:
    """The class whose mean feature is nearest, in Euclidean distance.

        argmin_c |x - mean_{i: y_i = c} x_i|

    Raises:
      TypeError: as for `linear_probe`, like ValueError.

    >>> x = np.array([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    >>> class_mean_predictions(x, np.array([0, 0, 4]), np.array([[3.0, 1.0]])).tolist()
    [0]
    """
    x, y, test = _checked(features, labels, test_features)
    classes = np.unique(y)
    means = np.stack([x[y == c].mean(axis=0) for c in classes])
    # |x - m|^2 without |x|^2, which is the same for every class.
    distances = np.square(means).sum(axis=1) - 2 * test @ means.T
    return classes[distances.argmin(axis=1)]


def neighbour_predictions(
    features: Any,
    labels: Any,
    test_features: Any,
    *,
    neighbours: int = 5,
) -> Int[np.ndarray, " m"]:
    """The class of most of the nearest training features, by cosine.

    Ties go to the lower class number.

    Raises:
      TypeError: as for `linear_probe`, like ValueError.
      ValueError: fewer samples than neighbours.

    >>> x = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> test = np.array([[1.0, 0.2]])
    >>> neighbour_predictions(x, np.array([2, 2, 0]), test, neighbours=1).tolist()
    [2]
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y, test = _checked(features, labels, test_features)
    if check_count("neighbours", neighbours) > len(x):
        msg = f"neighbours must be at most the {len(x)} samples; it is {neighbours}."
        raise ValueError(msg)
    model = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")
    return model.fit(x, y).predict(test)


@dataclasses.dataclass(frozen=True)
class PrototypeAttack:
    """What a prototype in the head brings back, at the attacker's best mixture.

    Attributes:
      alpha: the mixture whose harmonic mean is highest.
      harmonic: of `forgotten` and `retained`, in percent.
      forgotten: accuracy on the forgotten classes afterwards, in percent.
      retained: accuracy on the retained classes afterwards, in percent.
      curve: `(alpha, forgotten, retained)` of every mixture tried.
    """

    alpha: float
    harmonic: float
    forgotten: float
    retained: float
    curve: tuple[tuple[float, float, float], ...]


def attack_with_prototypes(
    features: Any,
    logits: Any,
    labels: Any,
    prototypes: dict[int, Any],
    *,
    alphas: Sequence[float] = ALPHAS,
    neutral: bool = True,
) -> PrototypeAttack:
    """Forgotten classes brought back by the mean of a few of their features.

        z_c(x) <- alpha m_c . x + (1 - alpha) z_c(x),   m_c = mean of samples / |mean|

    which is the head's row `w_c` mixed with `m_c` and its bias scaled by 1 - alpha.

    Args:
      features: inputs of the head for held-out samples of all classes.
      logits: of the same samples.
      labels: their classes.
      prototypes: for each forgotten class, features of a few of its training samples
        (the paper takes 5).
      alphas: mixtures to try; the worst for the defender counts.
      neutral: put the mean logit of the retained classes in place of a forgotten
        class's own first, so that a masked head games nothing.

    Raises:
      TypeError: as for `linear_probe`, like ValueError.
      ValueError: no forgotten class, or no retained one.

    Source: Spotter, arXiv 2506.01318, where alpha differs from model to model; here all
    models get the same choice.

    >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> z = np.array([[2.0, -9.0], [2.0, -9.0]])
    >>> attack_with_prototypes(x, z, np.array([0, 1]), {1: x[1:]}).forgotten
    0.0
    """
    x, y, _ = _checked(features, labels, features)
    z = np.array(logits, dtype=np.float64)
    k = z.shape[1] if z.ndim == 2 else 0
    forgotten = np.array(sorted(prototypes), dtype=int)
    retained = np.setdiff1d(np.arange(k), forgotten)
    if len(z) != len(x) or not forgotten.size or not retained.size:
        msg = (
            f"logits must be [{len(x)}, k] and prototypes some of the k classes; their "
            f"shape is {z.shape} and the classes {forgotten.tolist()}."
        )
        raise ValueError(msg)
    check_labels("labels", y, len(x), k)
    if neutral:
        z[:, forgotten] = z[:, retained].mean(axis=1, keepdims=True)
    means = np.stack([np.mean(prototypes[c], axis=0, dtype=float) for c in forgotten])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-30)
    curve = []
    for alpha in alphas:
        mixed = z.copy()
        mixed[:, forgotten] = alpha * x @ means.T + (1 - alpha) * z[:, forgotten]
        accuracy = class_accuracy(confusion_matrix(y, mixed.argmax(axis=1), k))
        pair = np.nanmean(accuracy[forgotten]), np.nanmean(accuracy[retained])
        curve.append((float(alpha), *map(float, pair)))
    best = max(curve, key=lambda point: _harmonic(*point[1:]))
    return PrototypeAttack(best[0], _harmonic(*best[1:]), *best[1:], tuple(curve))


def prototype_attack(
    classifier: Classifier,
    samples: Data,
    heldout: Data,
    forget_classes: Sequence[int],
    *,
    k: int = 5,
    alphas: Sequence[float] = ALPHAS,
) -> PrototypeAttack:
    """`attack_with_prototypes` on the input of a classifier's head.

    Args:
      classifier: the one to attack; not modified.
      samples: training samples, of the forgotten classes at least.
      heldout: of all classes, on which accuracies are taken.
      forget_classes: the forgotten classes.
      k: how many samples of a class make its prototype, the first ones.
      alphas: mixtures to try.

    Raises:
      TypeError: as for `attack_with_prototypes`, like ValueError.
      ValueError: no sample of a forgotten class.

    >>> import flax.linen as nn
    >>> import jax.numpy as jnp
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> kernel = {"kernel": jnp.eye(2), "bias": jnp.array([0.0, -9.0])}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> data = Data(np.eye(2, dtype=np.float32).reshape(2, 1, 2, 1), [0, 1])
    >>> prototype_attack(classifier, data, data, [1]).harmonic
    100.0
    """
    prototypes = {}
    for c in check_classes(forget_classes, num_classes(classifier, heldout.images)):
        rows = np.flatnonzero(samples.labels == c)[: check_count("k", k)]
        if not rows.size:
            msg = f"samples hold none of class {c}, which was forgotten."
            raise ValueError(msg)
        prototypes[c] = features_of(classifier, samples.images[rows])
    inputs = features_of(classifier, heldout.images)
    outputs = logits_of(classifier, heldout.images)
    return attack_with_prototypes(
        inputs, outputs, heldout.labels, prototypes, alphas=alphas
    )


def _harmonic(a, b):
    return 2 * a * b / (a + b) if a + b else 0.0


def _checked(features, labels, test_features):
    x, test = np.asarray(features, np.float64), np.asarray(test_features, np.float64)
    if x.ndim != 2 or test.ndim != 2 or x.shape[1] != test.shape[1] or not len(x):
        msg = (
            "features and test_features must be [n, d] and [m, d], of the same width; "
            f"their shapes are {x.shape} and {test.shape}."
        )
        raise ValueError(msg)
    for name, values in (("features", x), ("test_features", test)):
        if not np.isfinite(values).all():
            msg = f"{name} hold values that are not finite: the network has diverged."
            raise ValueError(msg)
    labels = np.asarray(check_labels("labels", labels, len(x)))
    if len(np.unique(labels)) < 2:
        msg = f"labels hold one class alone, {np.unique(labels).tolist()}: give two or more."  # noqa: E501
        raise ValueError(msg)
    return x, labels, test
