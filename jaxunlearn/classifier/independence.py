"""What images and networks must satisfy for an image's layer inputs to make sense."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.checks import check_finite, is_traced
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.classifier.images import as_array, check_images


def check_program(classifier: Classifier, images: Any) -> Any:
    """The images as an array, unless per-image inputs make no sense for them.

    Nothing is checked on values inside a transformation, where there are none.
    """
    check_classifier(classifier)
    images = check_images(images, classifier.preprocess)
    if images.shape[0] == 0:
        msg = "images are empty: at least one is needed."
        raise ValueError(msg)
    if not is_traced((classifier, images)):
        check_finite(images)
        check_independence(classifier, images[:1])
    return images


def check_independence(classifier: Classifier, images: ArrayLike) -> None:
    """Refuse a network that mixes the images of a batch."""
    change = float(_dependence(classifier, jnp.asarray(images[:1])))
    if not np.isfinite(change):
        msg = (
            "The logits of the first image are not finite: look for NaN or infinite "
            "parameters, and for pixels outside the range that the network expects."
        )
        raise ValueError(msg)
    if change > 1e-3:
        msg = (
            "The logits of an image must depend on that image alone; they change by "
            f"{change:.3g} (relative) with the other image of the batch. Freeze the "
            "network in inference mode (BatchNorm on its running averages), and mix no "
            "images in it."
        )
        raise ValueError(msg)


def num_classes(classifier: Classifier, images: Any) -> int:
    """How many logits the classifier gives for such images; nothing is computed."""
    check_classifier(classifier)
    images = as_array(images)
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.result_type(images))
    return jax.eval_shape(_logits, classifier, one).shape[1]


@jax.jit
def _logits(classifier, images):
    return classifier(images)


@jax.jit
def _dependence(classifier, image):
    """How much the logits of one image change with its companion in the batch."""
    image = classifier.prepare(image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        image = image.astype(jnp.float32)
    companions = (image[:, ::-1, ::-1], 1 - 3 * image)
    logits = [
        classifier.logits(jnp.concatenate([image, other]))[0].astype(jnp.float32)
        for other in companions
    ]
    change = jnp.abs(logits[0] - logits[1]).max()
    return change / jnp.maximum(jnp.abs(logits[0]).max(), 1e-30)
