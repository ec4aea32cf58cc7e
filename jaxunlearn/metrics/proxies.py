"""How good images are that stand in for retained data, and noise to compare with."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import check_count, check_key, short
from jaxunlearn.classifier.classifier import Classifier, Preprocess, check_classifier
from jaxunlearn.classifier.images import check_images
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.metrics.representation import (
    captured_energy,
    principal_angles,
)
from jaxunlearn.nullspace.moments import Moment, second_moments
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.nullspace.subspace import Subspace, subspaces
from jaxunlearn.nullspace.trees import check_structure, leaf_test, map_leaves
from jaxunlearn.tasks import Data, check_data

_KINDS = ("uniform", "gaussian", "matched")


@dataclasses.dataclass(frozen=True)
class ProxyQuality:
    """What proxies capture of the retained data, weight by weight.

    Attributes:
      captured_energy: by leaf path: the share of the true inputs' energy that lies in
        the proxies' subspace; 1 is ideal, NaN where the true inputs are zero.
      mean_angle: by leaf path, in degrees: mean of the principal angles between the
        proxies' subspace and the true one, over all groups; NaN where a rank is zero.
      largest_angle: by leaf path, in degrees: the largest of them.
      ranks: by leaf path: rank of the proxies' subspace, one number for each group.
      true_ranks: likewise, of the true subspace.
      accuracy: percent of the proxies that the classifier takes for their labels.
      second_accuracy: percent of them that an independently trained classifier does;
        None if there is none.
    """

    captured_energy: dict[str, float]
    mean_angle: dict[str, float]
    largest_angle: dict[str, float]
    ranks: dict[str, tuple[int, ...]]
    true_ranks: dict[str, tuple[int, ...]]
    accuracy: float
    second_accuracy: float | None


def proxy_quality(
    classifier: Classifier,
    proxies: Data,
    true_moments: PyTree,
    *,
    energy: float | None = None,
    rank: int | None = None,
    protected_fraction: float | None = None,
    rtol: float | None = None,
    second: Classifier | None = None,
    batch_size: int = 256,
) -> ProxyQuality:
    """Judge proxies by the subspaces they span, layer by layer, and by their classes.

        tr(UT C U) / tr(C),   angles(U, V),   mean(argmax f(x) = y)

    `U` holds the leading directions of the layer inputs on the proxies, `V` those on
    the true data by the same rule, and `C` is the true second moment. Angles are those
    of as many directions as the smaller of the two ranks: read them beside the ranks.

    Args:
      classifier: the one whose layers are compared.
      proxies: such as inverted images, with the labels that were asked for.
      true_moments: like params: what `second_moments` found on the retained data, or
        `sum_classes` of class moments.
      energy: as in `subspaces`; 0.99 where no rule is given.
      rank: as in `subspaces`.
      protected_fraction: as in `subspaces`.
      rtol: as in `subspaces`.
      second: a classifier trained independently, for the same classes. Images that
        only the first one recognises are adversarial rather than alike.
      batch_size: images at a time.

    Raises:
      TypeError: a leaf of `true_moments` is no `Moment`, or `rank` is no integer.
      ValueError: no proxies, several rules or a value out of range; moments of another
        network, with a class axis, or not finite; a label that does not exist.
      FloatingPointError: logits are not a number.

    Source: CovarNav (arXiv 2311.12999), which takes inverted images for retained ones.

    >>> import flax.linen as nn
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> kernel = {"kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "bias": jnp.zeros(2)}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> retained = jnp.array([[1.0, 0.0], [1.0, 1.0]]).reshape(2, 1, 1, 2)
    >>> moments = ju.second_moments(classifier, retained)
    >>> proxies = ju.Data(jnp.array([[3.0, 0.0]]).reshape(1, 1, 1, 2), [0])
    >>> quality = proxy_quality(classifier, proxies, moments, rank=1)
    >>> round(quality.captured_energy["layers_1/kernel"], 6)
    0.666667
    >>> round(quality.largest_angle["layers_1/kernel"], 4), quality.accuracy
    (31.7175, 100.0)
    """
    check_classifier(classifier)
    if second is not None:
        check_classifier(second, "second")
    if all(value is None for value in (energy, rank, protected_fraction, rtol)):
        energy = 0.99
    choose_rule(energy, rank, protected_fraction, rtol)
    rule = {
        "energy": energy,
        "rank": rank,
        "protected_fraction": protected_fraction,
        "rtol": rtol,
    }
    check_structure(
        "true_moments", true_moments, "classifier.params", classifier.params, Moment
    )
    map_leaves(
        lambda name, moment: moment.check(f"true_moments at {name}", leading=False),
        Moment,
        "true_moments",
        true_moments,
    )
    check_count("batch_size", batch_size)
    check_data("proxies", proxies)
    if len(proxies) == 0:
        msg = "proxies are empty: give at least one image."
        raise ValueError(msg)
    accuracy = _accuracy(classifier, proxies, batch_size)
    second_accuracy = None if second is None else _accuracy(second, proxies, batch_size)
    moments = second_moments(classifier, proxies.images, batch_size=batch_size)
    found, true = (subspaces(tree, **rule) for tree in (moments, true_moments))
    angles = {
        name: np.degrees(values[~np.isnan(values)])
        for name, values in _by_path(principal_angles(found, true)).items()
    }
    energies = _by_path(captured_energy(found, true_moments))
    return ProxyQuality(
        captured_energy={name: float(value) for name, value in energies.items()},
        mean_angle={name: _or_nan(np.mean, a) for name, a in angles.items()},
        largest_angle={name: _or_nan(np.max, a) for name, a in angles.items()},
        ranks=_ranks(found),
        true_ranks=_ranks(true),
        accuracy=accuracy,
        second_accuracy=second_accuracy,
    )


def noise_images(
    key: Array,
    kind: str,
    count: int,
    image_shape: tuple[int, ...],
    preprocess: Preprocess | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """Independent random pixels in [0, 1]: proxies that know next to nothing.

    - "uniform": between 0 and 1.
    - "gaussian": normal around 0.5 with standard deviation 0.25, clipped to [0, 1].
    - "matched": normal with the mean and standard deviation of each channel that the
      `Preprocess` holds, usually those of the training pixels, clipped to [0, 1]. The
      clipping moves both a little.

    Args:
      key: a `jax.random.key`.
      kind: one of these names.
      count: how many images, `n`.
      image_shape: (h, w, c).
      preprocess: the classifier's, which "matched" needs; the others do not look at it.

    Returns:
      Float32 images in pixel space, for a classifier with a `Preprocess`.

    Raises:
      TypeError: `key` is no key, or a number is no integer.
      ValueError: the kind is unknown, a number is below one, `image_shape` is not
        (h, w, c), or "matched" has no `Preprocess` or one of other channels.

    >>> images = noise_images(jax.random.key(0), "uniform", 2, (4, 4, 3))
    >>> images.shape, bool((images >= 0).all() and (images <= 1).all())
    ((2, 4, 4, 3), True)
    """
    check_key(key)
    if not isinstance(kind, str) or kind not in _KINDS:
        msg = f"kind must be one of {', '.join(_KINDS)}; it is {short(kind)}."
        raise ValueError(msg)
    check_count("count", count)
    if not isinstance(image_shape, list | tuple) or len(image_shape) != 3:
        msg = f"image_shape must be (h, w, c); it is {short(image_shape)}."
        raise ValueError(msg)
    for name, side in zip("hwc", image_shape, strict=True):
        check_count(f"image_shape's {name}", side)
    shape = (count, *image_shape)
    needed, limit = 8 * math.prod(shape), parallel.free_memory()
    if needed > limit:
        msg = f"{count} images of {image_shape} take {needed:,} bytes while they are drawn, and {limit:,} are free: ask for fewer or smaller ones."  # noqa: E501
        raise ValueError(msg)
    if kind == "uniform":
        return np.asarray(jax.random.uniform(key, shape, jnp.float32))
    mean, std = (0.5,), (0.25,)
    if kind == "matched":
        if preprocess is None:
            msg = (
                'kind "matched" takes the mean and standard deviation of pixels from a '
                "Preprocess, and preprocess is None: pass the classifier's, or choose "
                '"gaussian".'
            )
            raise ValueError(msg)
        check_images(jax.ShapeDtypeStruct(shape, np.float32), preprocess)
        mean, std = preprocess.mean, preprocess.std
    normal = np.asarray(jax.random.normal(key, shape, jnp.float32))
    mean, std = (np.asarray(values, np.float32) for values in (mean, std))
    return np.clip(normal * std + mean, 0, 1)


def _accuracy(classifier, proxies, batch_size) -> float:
    """Percent of the images that are taken for their labels."""
    return evaluate(classifier, proxies, (), batch_size=batch_size).retained_weighted


def _by_path(tree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=leaf_test(Subspace))
    return {path_name(path): leaf for path, leaf in leaves if leaf is not None}


def _ranks(tree) -> dict[str, tuple[int, ...]]:
    return {name: tuple(s.ranks.tolist()) for name, s in _by_path(tree).items()}


def _or_nan(function, values) -> float:
    return float(function(values)) if values.size else float("nan")
