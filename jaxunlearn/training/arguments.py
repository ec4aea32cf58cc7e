"""What the arguments of a training must be, said before anything is computed."""

import contextlib
import functools
import logging
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxunlearn.checks import (
    check_channels,
    check_eager,
    check_key,
    check_labels,
    check_type,
)
from jaxunlearn.classifier.classifier import (
    Classifier,
    Preprocess,
    check_images,
    freeze,
)
from jaxunlearn.classifier.function import UNTRAINABLE, Function
from jaxunlearn.classifier.network import REFUSALS, main_output
from jaxunlearn.metrics.evaluation import num_classes
from jaxunlearn.tasks import Data
from jaxunlearn.training.recipe import Recipe

# One name for all messages of a training.
_log = logging.getLogger("jaxunlearn.training")

# The learning rate of every step is held at once.
_MOST_STEPS = 2**27


def check_arguments(
    train: Data,
    validation: Data | None,
    recipe: Recipe,
    key: Array,
    preprocess: Preprocess | None,
    channels: Any,
) -> None:
    """Refuse what is wrong whatever the network is."""
    hint = "Data(images, labels) makes one of arrays."
    check_type("train", train, Data, hint)
    check_type("validation", validation, Data, hint, optional=True)
    check_type("recipe", recipe, Recipe, "Recipe(epochs=15) is one.")
    check_type("preprocess", preprocess, Preprocess, optional=True)
    check_eager("fit", key, train.images)
    check_key(key)
    if len(train) == 0:
        msg = "train holds no samples: there is nothing to train on."
        raise ValueError(msg)
    check_channels(train.images, channels, name="images of train")
    check_images(train.images, preprocess)
    shape = train.images.shape[1:]
    if validation is not None and len(validation):
        check_images(validation.images, preprocess)
        if validation.images.shape[1:] != shape:
            msg = (
                f"Images of train have shape {shape} and those of validation "
                f"{validation.images.shape[1:]}: they must agree."
            )
            raise ValueError(msg)
    elif recipe.patience is not None:
        msg = (
            f"Recipe.patience is {recipe.patience}, and stopping early looks at "
            "validation samples: give some, or let patience be None."
        )
        raise ValueError(msg)
    if recipe.crop_padding > min(shape[:2]):
        msg = (
            f"Recipe.crop_padding is {recipe.crop_padding} pixels, and the images are "
            f"{shape[0]} x {shape[1]}: windows beyond the image are black."
        )
        raise ValueError(msg)
    steps = recipe.steps(len(train))
    if steps > _MOST_STEPS:
        msg = (
            f"Recipe.epochs is {recipe.epochs}, which makes {steps:.3g} steps of "
            f"{len(train)} samples: at most {_MOST_STEPS:,} are taken."
        )
        raise ValueError(msg)


def start(
    model: Any,
    train: Data,
    validation: Data | None,
    preprocess: Preprocess | None,
    key: Array,
    batch_size: int,
    options: Mapping[str, Hashable],
) -> tuple[Classifier, str]:
    """The classifier that training starts from, and its network in words.

    Refuses a network and data that do not suit each other.
    """
    if isinstance(model, Function):
        raise TypeError(UNTRAINABLE)
    shape = train.images.shape[1:]
    given = {"preprocess": preprocess, **options}
    if isinstance(model, nnx.Module):
        classifier = freeze(model, **given)
        described = classifier.network.original
    else:
        network = freeze(model, {"params": {}}, **given).network
        with _refusals(shape):
            params, state = _init(network, key, shape)
        classifier = freeze(model, {"params": params, **state}, **given)
        described = model
    with _refusals(shape):
        classes = num_classes(classifier, train.images)
        dtype = jax.dtypes.canonicalize_dtype(train.images.dtype)
        batch = jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        outputs = _training_outputs.eval_shape(classifier, batch, key)
        _check_outputs(outputs, (batch_size, classes))
    _check_classes(train, validation, classes)
    words = repr(described) + (repr(sorted(options.items())) if options else "")
    return classifier, words


@contextlib.contextmanager
def _refusals(shape) -> Iterator[None]:
    """Errors of a network that cannot take these images, in a sentence."""
    try:
        yield
    except (*REFUSALS, ZeroDivisionError) as error:
        first = str(error).strip().partition("\n")[0].rstrip(".")[:500]
        msg = (
            f"The network cannot be trained on images of shape {shape} ({first}). "
            "Arguments of its call besides the images are keywords of fit."
        )
        raise ValueError(msg) from error


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(network, key, image_shape):
    return network.init(key, image_shape)


@jax.jit
def _training_outputs(classifier, images, key):
    state, images = classifier.state, classifier.prepare(images)
    return classifier.network.apply_train(classifier.params, state, images, key)[0]


def _check_outputs(outputs, shape):
    logits = main_output(outputs)
    if getattr(logits, "shape", None) != shape:
        seen = jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", outputs)
        msg = (
            f"in training it must return logits {list(shape)}, alone or ahead of others"
            f" in a tuple, and it returns {seen}"
        )
        raise ValueError(msg)
    if logits is not outputs:
        _log.warning(
            "In training the network returns %d outputs. The first one is taken for "
            "the logits; the others have no part in the loss, and what they alone "
            "depend on is not trained.",
            len(outputs),
        )


def _check_classes(train, validation, classes):
    for name, data in (("train", train), ("validation", validation)):
        if data is not None:
            hint = f"The network has {classes} logits: make it wider."
            check_labels(f"labels of {name}", data.labels, len(data), classes, hint)
    names = train.class_names or ()
    if len(names) > classes:
        msg = (
            f"train names {len(names)} classes and the network has {classes} logits: "
            "make it wider."
        )
        raise ValueError(msg)
    missing = np.setdiff1d(np.arange(classes), train.labels).tolist()
    if missing:
        shown = [f"{c} ({names[c]})" if c < len(names) else str(c) for c in missing[:9]]
        _log.warning(
            "train holds no sample of %d of the network's %d classes (%s%s), which it "
            "does not learn: as it should be where they are left out to retrain.",
            *(len(missing), classes, ", ".join(shown), ", ..." * (len(missing) > 9)),
        )
