"""Requests whose images or labels are meant to do harm, and whether that is seen."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Num

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.methods.relabel import nearest_retained_labels
from jaxunlearn.metrics.evaluation import evaluate, logits
from jaxunlearn.metrics.perturbation import as_floats
from jaxunlearn.metrics.robustness import EPSILON, STEPS, pgd
from jaxunlearn.nullspace.moments import second_moments
from jaxunlearn.nullspace.projection import drift
from jaxunlearn.studies.given import Given, Rows
from jaxunlearn.tasks import Data


def poisoned(
    given: Given,
    *,
    radius: float = EPSILON,
    steps: int = STEPS,
    patch: int = 3,
    share: float = 0.5,
) -> Rows:
    """An honest request and three that are not, by every method.

    - "perturbed": each forget image moves by at most `radius` (L-infinity, PGD) towards
      the victim class, so that the model no longer sees what is to be forgotten.
    - "steered": to the forget images come training images of the victim class under the
      forget label, so that the victim is forgotten too.
    - "backdoored": each forget image carries a white square in its corner, so that what
      is unlearned is tied to the square.

    The victim is the retained class that the original takes the forget images for if it
    may not give theirs. The method's grid is judged on clean validation data, as who
    serves the request would.

    Args:
      given: of one training seed.
      radius: of the perturbation, in pixels of [0, 1].
      steps: of PGD, each of `2.5 radius / steps`.
      patch: side of the square, in pixels.
      share: of the forget images, how many of the victim's come besides.

    Returns:
      By "METHOD, KIND": "accuracy/retained", "accuracy/forgotten" and "victim" (test
      accuracy of the victim class) in %; "triggered", retained test accuracy with the
      square; "drift", the root of the mean square over layers of the certificate that
      the true retained moments give; "original" has a row of its own.
    """
    forget, retain = given.parts
    victim = likely_victim(given.original, forget, given.classes)
    moments = second_moments(given.original, retain.images)
    requests: dict[str, Callable[[], Data]] = {
        "honest": lambda: forget,
        "perturbed": lambda: perturbed(given.original, forget, victim, radius, steps),
        "steered": lambda: _steered(forget, retain, victim, share),
        "backdoored": lambda: _with(forget, marked(forget.images, patch)),
    }
    rows = {"original": _judged(given, given.original, victim, patch, moments)}
    for kind, request in requests.items():
        data = request()
        for title, (method, grid) in given.methods.items():
            result = given.forget(method, data, retain, grid)
            about = _judged(given, result.classifier, victim, patch, moments)
            rows[f"{title}, {kind}"] = about
    return rows


def likely_victim(
    classifier: Classifier, forget: Data, classes: tuple[int, ...]
) -> int:
    """The retained class that most of these images have for their likeliest."""
    labels = nearest_retained_labels(logits(classifier, forget.images), classes)
    return int(np.bincount(labels).argmax())


def perturbed(
    classifier: Classifier, data: Data, target: int, radius: float, steps: int
) -> Data:
    """The images within `radius` at which the target's logit leads as far as it can.

    Where images are uint8 so is the result, rounded inwards.
    """
    images = as_floats(classifier, data.images)
    as_target = Data(data.images, np.full(len(data), target))
    how = {"epsilon": radius, "steps": steps}
    found = pgd(classifier, as_target, goal="recover", **how).images
    if data.images.dtype == np.uint8:
        # Towards the start, so that rounding leaves nothing outside of the ball.
        change = np.trunc(255 * (found - images) * (1 + 1e-6))
        found = (np.asarray(data.images, int) + change.astype(int)).astype(np.uint8)
    return _with(data, found)


def marked(images: Num[np.ndarray, "n h w c"], side: int) -> Num[np.ndarray, "n h w c"]:
    """The images with a white square of so many pixels in the lower right corner."""
    whole = np.array(images)
    whole[:, -side:, -side:] = 255 if whole.dtype == np.uint8 else 1
    return whole


def _steered(forget: Data, retain: Data, victim: int, share: float) -> Data:
    """The first images of the victim class too, under the forget set's first label."""
    count = round(share * len(forget))
    more = np.flatnonzero(retain.labels == victim)[:count]
    images = np.concatenate([forget.images, retain.images[more]])
    labels = np.append(forget.labels, np.full(more.size, forget.labels[0]))
    return Data(images, labels, forget.class_names)


def _judged(given: Given, model, victim, patch, moments) -> dict[str, float]:
    end = evaluate(model, given.test, given.classes)
    with_patch = _with(given.test, marked(given.test.images, patch))
    moved = jax.tree.leaves(drift(moments, given.original.params, model.params))
    return {
        "accuracy/retained": end.retained,
        "accuracy/forgotten": end.forgotten,
        "victim": float(end.per_class[victim]),
        "triggered": evaluate(model, with_patch, given.classes).retained,
        "drift": float(np.sqrt(np.mean(np.square(moved)))),
    }


def _with(data: Data, images) -> Data:
    return Data(images, data.labels, data.class_names)
