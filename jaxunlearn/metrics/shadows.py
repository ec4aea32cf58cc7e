"""U-LiRA with shadow ensembles: models that saw a sample against others."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxunlearn import parallel
from jaxunlearn.checks import check_count, check_functions, check_key, check_labels
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.classifier.images import check_images
from jaxunlearn.metrics.attackers import generator
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.membership import lira
from jaxunlearn.metrics.similarity import margins
from jaxunlearn.tasks import Data, Task, check_data


@dataclasses.dataclass(frozen=True, eq=False)
class ShadowEnsemble:
    """Logit-scaled confidences of every sample, under two kinds of models.

    Attributes:
      unlearned: under those that trained on it and then unlearned it, `[m, n]`.
      never_seen: under those that never saw it, `[m, n]`. Row by row the models of
        different samples differ: the order of models means nothing.
    """

    unlearned: Float[np.ndarray, "m n"]
    never_seen: Float[np.ndarray, "m n"]


@dataclasses.dataclass(frozen=True, eq=False)
class ULira:
    """How well models that unlearned a sample are told from those that never saw it.

    Attributes:
      accuracy: balanced; 1/2 is the target.
      auc: of all chances.
      tpr_at_1_fpr: at a false positive rate of at most 1 %.
      by_example: accuracy on each sample, `[n]`: the worst matter.
      unlearned: chances of having been trained on, of the models that were, `[m, n]`.
      never_seen: of the models that were not, `[m', n]`.
    """

    accuracy: float
    auc: float
    tpr_at_1_fpr: float
    by_example: Float[np.ndarray, " n"]
    unlearned: Float[np.ndarray, "m n"]
    never_seen: Float[np.ndarray, "l n"]


def u_lira(
    unlearned: Any,
    never_seen: Any,
    data: Data | None = None,
    *,
    sigma: str = "population",
) -> ULira:
    """`lira` of every model of two ensembles, by the others of both.

        accuracy = 1/2 [P(chance > 1/2 | unlearned) + P(chance <= 1/2 | never seen)]

    The model that is attacked is left out of the fit of its own ensemble; as published
    code scores models that it fitted on, it is optimistic.

    Args:
      unlearned: logit-scaled confidences `[m, n]` under models that trained on the `n`
        samples and then unlearned them, or these classifiers, all of one network.
      never_seen: `[m', n]` under models that never saw them, or these classifiers.
      data: the samples, where classifiers are given.
      sigma: as for `lira`.

    Raises:
      ValueError: fewer than three models of either kind, shapes that do not fit, values
        that are not finite, classifiers without data or of several networks.

    Source: Hayes et al., arXiv 2403.01218.

    >>> draw = np.random.default_rng(0)
    >>> never_seen = draw.normal(size=(8, 50))
    >>> round(u_lira(never_seen + 9, never_seen).accuracy, 2)
    1.0
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    seen, fresh = (
        _confidences(name, given, data)
        for name, given in (("unlearned", unlearned), ("never_seen", never_seen))
    )
    if seen.shape[1:] != fresh.shape[1:]:
        msg = (
            "unlearned and never_seen must be of the same samples; their shapes are "
            f"{seen.shape} and {fresh.shape}."
        )
        raise ValueError(msg)
    caught = [
        lira(np.delete(seen, i, 0), fresh, seen[i], sigma=sigma) for i in _of(seen)
    ]
    passed = [
        lira(seen, np.delete(fresh, i, 0), fresh[i], sigma=sigma) for i in _of(fresh)
    ]
    caught, passed = np.stack(caught), np.stack(passed)
    right = ((caught > 0.5).mean(axis=0) + (passed <= 0.5).mean(axis=0)) / 2
    truth = np.repeat([1, 0], [caught.size, passed.size])
    chances = np.concatenate([caught.ravel(), passed.ravel()])
    false, true, _ = roc_curve(truth, chances, drop_intermediate=False)
    area = float(roc_auc_score(truth, chances))
    found = float(true[false <= 0.01].max())
    return ULira(float(right.mean()), area, found, right, caught, passed)


def shadow_ensemble(
    train: Callable[[Data, Any], Classifier],
    data: Data,
    *,
    num_classes: int,
    count: int,
    key: Any,
    method: Callable[..., Any] | None = None,
    forget_sets: int = 10,
    batch_size: int = 256,
) -> ShadowEnsemble:
    """Train shadow models on halves of the data, and let them unlearn what they saw.

    Shadows come in pairs on complementary random halves, so that exactly half of them
    saw any sample. The half of each is cut into `forget_sets`, and the method unlearns
    every one by itself from that shadow. A sample's confidences are those of the models
    that unlearned its set and, for shadows that never saw it, of models that unlearned
    another. As many samples went into both, so that exact unlearning gives 1/2; what
    unlearning does to all samples alike is no evidence.

    Args:
      train: `(data, key) -> Classifier`, of one network.
      data: the samples, in question one and all.
      num_classes: how many classes there are.
      count: of shadows, an even number; `count * forget_sets` times the method runs.
      key: a `jax.random.key`, of which all that is drawn follows.
      method: a method of `jaxunlearn.methods`, or a function `(classifier, task, *,
        key)` that returns an object with a `classifier`. None unlearns nothing: the
        attack is then plain membership inference on trained models.
      forget_sets: into how many a half is cut.
      batch_size: images at a time.

    Raises:
      TypeError: `train` or `method` is no function, or what comes of them no
        `Classifier`.
      ValueError: an odd `count`, fewer than six, or fewer samples than forget sets.

    Source: Hayes et al., arXiv 2403.01218; Carlini et al., arXiv 2112.03570.

    >>> import jaxunlearn as ju
    >>> def apply(params, state, images):
    ...     return images.reshape(len(images), -1) @ params
    >>> def train(data, key):  # to know what it saw, and no more
    ...     known = data.images.reshape(len(data), -1).T @ np.eye(2)[data.labels]
    ...     noise = jax.random.normal(key, known.shape) / 9
    ...     return ju.freeze(ju.Function(apply, jnp.float32(known) + noise))
    >>> data = Data(np.eye(8, dtype=np.float32).reshape(8, 1, 8, 1), [0, 1] * 4)
    >>> key = jax.random.key(0)
    >>> shadows = shadow_ensemble(train, data, num_classes=2, count=16, key=key)
    >>> u_lira(shadows.unlearned, shadows.never_seen).accuracy > 0.9
    True
    """
    check_functions(train=train, method=method)
    check_key(key)
    check_data("data", data)
    check_labels("labels of data", data.labels, len(data), num_classes)
    check_count("forget_sets", forget_sets)
    if check_count("count", count) % 2 or count < 6:
        msg = (
            f"count must be even and 6 or more, of which half saw a sample and one of "
            f"them is left out; it is {count}."
        )
        raise ValueError(msg)
    if method is not None and len(data) < 2 * forget_sets:
        msg = (
            f"data hold {len(data)} samples, and half of them cannot be cut into "
            f"{forget_sets} sets."
        )
        raise ValueError(msg)
    seen = half_splits(len(data), count, jax.random.fold_in(key, 0))
    keys = [jax.random.fold_in(key, i + 1) for i in range(count)]
    shadows = [
        _trained(train, data.take(rows), own)
        for rows, own in zip(seen, keys, strict=True)
    ]
    ensemble = functools.partial(ensemble_logits, batch_size=batch_size)
    values = _scaled(ensemble(shadows, data.images), data.labels)
    if method is not None:
        for i, (shadow, rows, own) in enumerate(zip(shadows, seen, keys, strict=True)):
            draw = generator(jax.random.fold_in(own, 1))
            sets, others = (
                np.array_split(draw.permutation(np.flatnonzero(part)), forget_sets)
                for part in (rows, ~rows)
            )
            models = []
            for number, chosen in enumerate(sets):
                forget = np.isin(np.arange(len(data)), chosen)
                parts = data.take(forget), data.take(rows & ~forget)
                task = Task(*parts, num_classes=num_classes, train=train)
                drawn = jax.random.fold_in(own, number + 2)
                models.append(method(shadow, task, key=drawn).classifier)
            outputs = ensemble(models, data.images)
            for judged, z in zip(map(np.union1d, sets, others), outputs, strict=True):
                values[i, judged] = _scaled(z[judged], data.labels[judged])
    # Of each sample exactly half of the shadows are of either kind, in their order.
    order = np.argsort(~seen, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    return ShadowEnsemble(*np.split(ordered, 2))


def half_splits(n: int, count: int, key: Any) -> Bool[np.ndarray, "count n"]:
    """Which samples each of an even number of shadows sees: complementary halves.

    >>> half_splits(4, 2, jax.random.key(0)).sum(axis=0).tolist()
    [1, 1, 1, 1]
    """
    draw = generator(key)
    seen = np.zeros((count, n), bool)
    for pair in range(0, count, 2):
        seen[pair, draw.permutation(n)[: n // 2]] = True
        seen[pair + 1] = ~seen[pair]
    return seen


def ensemble_logits(
    classifiers: Sequence[Classifier],
    images: Array | np.ndarray,
    *,
    batch_size: int = 256,
) -> Float[np.ndarray, "m n k"]:
    """Logits of any number of images under several models of one network.

    On a GPU or TPU models are vmapped; on a CPU one program takes them in turn.

    Args:
      classifiers: of one network and one preprocessing.
      images: `[n, h, w, c]`.
      batch_size: images at a time; each goes through all models at once.

    Raises:
      TypeError: one is no `Classifier`.
      ValueError: none, or of several networks.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), jnp.ones((1, 4))))
    >>> ensemble_logits([classifier] * 3, np.ones((5, 2, 2, 1), np.float32)).shape
    (3, 5, 2)
    """
    check_count("batch_size", batch_size)
    for one in classifiers:
        check_classifier(one)
    same_network(classifiers)
    images = check_images(images, classifiers[0].preprocess)
    if parallel.loops_are_slow():
        # There convolutions of many kernels at once are, too: 4 times slower.
        return np.stack([logits(c, images, batch_size=batch_size) for c in classifiers])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *classifiers)
    n, parts = len(images), []
    batch_size = min(batch_size, 1 << max(n - 1, 0).bit_length())
    for start in range(0, n, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        parts.append(jax.device_get(_under_all(stacked, images[rows])))
    return np.concatenate(parts, axis=1)[:, :n]


def same_network(classifiers: Sequence[Classifier]) -> None:
    """Refuse classifiers of several networks, or none."""
    kinds = {_kind(one) for one in classifiers}
    if len(kinds) != 1:
        msg = (
            "Classifiers must be of one network, with parameters of the same shapes "
            f"and one Preprocess; there are {len(classifiers)} of {len(kinds)} kinds."
        )
        raise ValueError(msg)


@jax.jit
def _under_all(stacked, images):
    return jax.vmap(lambda classifier: classifier(images))(stacked)


def _kind(classifier):
    leaves, structure = jax.tree.flatten(classifier)
    return structure, tuple((jnp.shape(a), jnp.result_type(a)) for a in leaves)


def _trained(train, data, key):
    classifier = train(data, key)
    check_classifier(classifier, "what train returns")
    return classifier


def _of(models):
    return range(len(models))


def _scaled(logits, labels):
    """`log p_y - log (1 - p_y)`, which is the margin of the logits."""
    flat = np.asarray(logits, np.float32).reshape(-1, logits.shape[-1])
    values = margins(flat, np.broadcast_to(labels, logits.shape[:-1]).ravel())
    return np.asarray(values, np.float64).reshape(logits.shape[:-1])


def _confidences(name, given, data):
    models = isinstance(given, list | tuple) and any(
        isinstance(one, Classifier) for one in given
    )
    if models and data is None:
        msg = f"{name} are classifiers: give the samples to judge them on as data."
        raise ValueError(msg)
    if models:
        given = _scaled(ensemble_logits(given, data.images), data.labels)
    values = np.asarray(given, np.float64)
    if values.ndim != 2 or len(values) < 3 or not values.shape[1]:
        msg = (
            f"{name} must be [models, n], of three models or more, of which each is "
            f"left out in turn; their shape is {values.shape}."
        )
        raise ValueError(msg)
    if not np.isfinite(values).all():
        msg = f"{name} hold {(~np.isfinite(values)).sum()} values that are not finite."
        raise ValueError(msg)
    return values
