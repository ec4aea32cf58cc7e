"""How many minibatches bring forgotten classes back, and from which data."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool

from jaxunlearn.checks import (
    check_choice,
    check_count,
    check_key,
    check_labels,
    check_positive,
)
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.loop import gather_minibatches, minibatches, run_steps
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.descent.step import begin, to_pixels
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.metrics.head import neutral_head
from jaxunlearn.tasks import Data, check_classes

DATA = ("all", "forget", "retain")

_SMOOTHING = {"exact": 0.0, "as-coded:erasure": 0.01}


@dataclasses.dataclass(frozen=True)
class Relearning:
    """How a model is taught again; stored beside the number.

    Attributes:
      data: "all" training samples, those of the "forget" classes, or those of the
        "retain" classes alone (arXiv 2505.22310).
      learning_rate: of Adam, with its defaults.
      batch_size: samples in a minibatch; at most all.
      cap: the most minibatches; None is ten epochs of the data, and at least 150.
      neutral_head: put the retained rows' mean in place of the forgotten classes' rows
        and biases first, so that a masked head games nothing.

    Raises:
      TypeError: a number is not one.
      ValueError: no such `data`, or a number is not positive.

    Source: the Anamnesis Index of Chundawat et al., arXiv 2201.05629.
    """

    data: str = "all"
    learning_rate: float = 1e-3
    batch_size: int = 256
    cap: int | None = None
    neutral_head: bool = True

    def __post_init__(self):
        check_choice("data", self.data, DATA)
        check_count("batch_size", self.batch_size)
        if self.cap is not None:
            check_count("cap", self.cap)
        check_positive("learning_rate", self.learning_rate)


def default_cap(samples: int, batch_size: int) -> int:
    """Minibatches in ten epochs, as in arXiv 2201.05629, and at least 150."""
    return max(150, math.ceil(10 * samples / batch_size))


@dataclasses.dataclass(frozen=True)
class Relearned:
    """What relearning took.

    Attributes:
      steps: minibatches until the target was reached; the cap where it was not.
      censored: whether the cap came first.
      curve: accuracy on the forgotten classes after every minibatch, in percent.
      target: the accuracy asked for, in percent.
      protocol: how it was taught.
    """

    steps: int
    censored: bool
    curve: tuple[float, ...]
    target: float
    protocol: Relearning

    def __str__(self):
        return f"{'>' if self.censored else ''}{self.steps}"


def relearn_steps(
    classifier: Classifier,
    train: Data,
    heldout: Data,
    forget_classes: Sequence[int],
    *,
    target: float,
    forget: Data | None = None,
    protocol: Relearning | None = None,
    key: Any,
) -> Relearned:
    """Minibatches until held-out samples of the forgotten classes are known again.

    Adam on the cross-entropy, the network in inference mode (its BatchNorm statistics
    stay). Accuracy is the unweighted mean over the forgotten classes and taken after
    every minibatch. Nothing is trained in place.

    Args:
      classifier: the one to teach, such as an unlearned or a retrained one.
      train: the full training set, forgotten samples included.
      heldout: labelled samples that are not trained on; those of the forgotten classes
        are looked at.
      forget_classes: the forgotten classes, or `()` where samples were forgotten.
      forget: these samples, which `train` holds too. They are then looked at in place of
        held-out ones, and the head stays.
      target: accuracy in percent, such as 95 % of the original's.
      protocol: None is `Relearning()`.
      key: a `jax.random.key`, for the order of the samples. Use the same for all models
        that are compared, and several for an interval.

    Raises:
      TypeError: a forget class is not an integer.
      ValueError: no forget class and no `forget`, or both; no sample of a class in either
        set; samples to forget that `train` does not hold; a target outside (0, 100]; or
        a network without a head of one row a class.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> images = np.array([1.0, -1.0] * 8, np.float32).reshape(16, 1, 1, 1)
    >>> data = Data(images, [0, 1] * 8)
    >>> kernel = {"kernel": jnp.zeros((1, 2)), "bias": jnp.array([1.0, 0.0])}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> how = Relearning(learning_rate=0.1, cap=20)
    >>> key = jax.random.key(0)
    >>> str(relearn_steps(classifier, data, data, [1], target=95, protocol=how, key=key))
    '1'
    """  # noqa: E501
    protocol = Relearning() if protocol is None else protocol
    check_key(key)
    k = num_classes(classifier, train.images)
    classes = check_classes(forget_classes, k)
    _check(classes, train, heldout, forget, k, target)
    if forget is None:
        forgotten = np.isin(train.labels, classes)
        judged = np.flatnonzero(np.isin(heldout.labels, classes))
        weights = _class_weights(heldout.labels[judged])
    else:
        heldout, forgotten = forget, rows_of(train, forget)
        judged = np.arange(len(forget))
        weights = np.full(len(forget), 1 / len(forget), np.float32)
    if protocol.neutral_head and classes:
        classifier = neutral_head(classifier, train.images[:1], classes)
    chosen = {"all": np.full(len(train), True), "forget": forgotten}
    taught = np.flatnonzero(chosen.get(protocol.data, ~forgotten))
    size = min(protocol.batch_size, len(taught))
    cap = protocol.cap or default_cap(len(taught), size)
    step, carry, constants = _start(classifier, train, size, protocol, key)
    curve: list[float] = []

    def on_chunk(stop, carry, outputs):
        del stop, carry
        curve.extend(outputs.tolist())
        if max(curve) >= target:
            raise _ReachedError

    arrays = jnp.asarray(heldout.images[judged]), jnp.asarray(heldout.labels[judged])
    order = minibatches(key, len(taught), size)
    feed = functools.partial(
        gather_minibatches,
        (train.images, train.labels),
        lambda first, stop: taught[order(first, stop)].astype(np.int32),
        None,
    )
    constants = (constants, *arrays, jnp.asarray(weights))
    with contextlib.suppress(_ReachedError):
        run_steps(
            *(_Judging(step), carry, constants), steps=cap, feed=feed, on_chunk=on_chunk
        )
    reached = np.flatnonzero(np.asarray(curve) >= target)
    steps = int(reached[0]) + 1 if reached.size else cap
    kept = tuple(curve[:steps])
    return Relearned(steps, not reached.size, kept, float(target), protocol)


def anamnesis_index(
    unlearned: Relearned, retrained: Relearned, *, variant: str = "exact"
) -> float:
    """Relearning time relative to the retrained model's: 1 is ideal.

        AIN = rt_u / rt_g

    Where either is censored it is a bound, and where both are it says nothing: NaN.

    Args:
      unlearned: what relearning of the unlearned model took.
      retrained: what that of the retrained one took.
      variant: "exact", or "as-coded:erasure", which adds 0.01 to either time.

    Raises:
      ValueError: targets or protocols differ, or there is no such variant.

    Source: Chundawat et al., arXiv 2201.05629.

    >>> times = [Relearned(s, False, (), 95.0, Relearning()) for s in (12, 40)]
    >>> anamnesis_index(*times)
    0.3
    """
    check_choice("variant", variant, _SMOOTHING)
    if (unlearned.target, unlearned.protocol) != (retrained.target, retrained.protocol):
        msg = (
            "Both models must be taught in the same way: the targets are "
            f"{unlearned.target} and {retrained.target}, the protocols "
            f"{unlearned.protocol} and {retrained.protocol}."
        )
        raise ValueError(msg)
    if unlearned.censored and retrained.censored:
        return math.nan
    more = _SMOOTHING[variant]
    return (unlearned.steps + more) / (retrained.steps + more)


def rows_of(train: Data, forget: Data) -> Bool[np.ndarray, " n"]:
    """Which samples of the training set are to be forgotten, found by their bytes.

    Of several equal samples all are meant.

    Raises:
      ValueError: the training set does not hold one of them.

    >>> train = Data(np.arange(3.0).reshape(3, 1, 1, 1), [0, 1, 0])
    >>> rows_of(train, Data(train.images[1:2], train.labels[1:2])).tolist()
    [False, True, False]
    """
    wanted = set(_contents(forget))
    found = list(_contents(train))
    missing = len(wanted - set(found))
    if missing or not wanted:
        msg = (
            f"forget holds {len(wanted)} different samples, of which train lacks "
            f"{missing}: train is the full training set, forgotten samples included, "
            f"and images of both are of one type (they are {forget.images.dtype} and "
            f"{train.images.dtype})."
        )
        raise ValueError(msg)
    return np.array([one in wanted for one in found])


def _contents(data):
    pairs = zip(data.images, data.labels.tolist(), strict=True)
    return ((label, np.asarray(image).tobytes()) for image, label in pairs)


class _ReachedError(Exception):
    """The target is reached: no further chunk is needed."""


@dataclasses.dataclass(frozen=True)
class _Judging:
    """A step of descent, and the accuracy after it in place of its loss."""

    step: Any

    def __call__(self, carry, constants, index, row):
        constants, images, labels, weights = constants
        carry, _ = self.step(carry, constants, index, row)
        classifier = constants[0].replace(params=carry[0])
        right = classifier(to_pixels(images)).argmax(axis=1) == labels
        return carry, 100 * jnp.sum(weights * right)


def _start(classifier, train, size, protocol, key):
    kind = jnp.result_type(train.images)
    images = jax.ShapeDtypeStruct((size, *train.images.shape[1:]), kind)
    labels = jax.ShapeDtypeStruct((size,), np.int32)
    adam = optax.adam(protocol.learning_rate)
    return begin(classifier, images, labels, adam, key=key, loss=cross_entropy)


def _class_weights(labels):
    """Such that the sum over right answers is the mean of the classes' accuracies."""
    classes, inverse, counts = np.unique(
        labels, return_inverse=True, return_counts=True
    )
    return (1 / counts[inverse] / len(classes)).astype(np.float32)


def _check(classes, train, heldout, forget, k, target):
    if (not classes) == (forget is None):
        msg = (
            "Relearning is measured on forgotten classes, forget_classes=[...], or on "
            "forgotten samples, forget_classes=() and forget=Data(...); given "
            f"{'is neither' if forget is None else 'are both'}."
        )
        raise ValueError(msg)
    sets = {"train": train, "heldout": heldout}
    sets |= {} if forget is None else {"forget": forget}
    for name, data in sets.items():
        check_labels(f"labels of {name}", data.labels, len(data), k)
        absent = sorted(set(classes) - set(data.labels.tolist()))
        if absent:
            msg = f"{name} holds no sample of class {absent[0]}, which was forgotten."
            raise ValueError(msg)
    if not 0 < target <= 100:
        msg = f"target must be an accuracy in percent, in (0, 100]; it is {target}."
        raise ValueError(msg)
