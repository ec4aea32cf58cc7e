"""All requests of a sweep: statistics once, new labels once, then everybody's steps."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn import parallel
from jaxunlearn.checks import check_key
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.methods.descent import Descent, Progress, needs_logits, no_progress
from jaxunlearn.methods.learning_rates import Trial, smallest_good_rate
from jaxunlearn.methods.memory import on_device_if_they_fit
from jaxunlearn.methods.protection import Protection, check_method, protect_each
from jaxunlearn.methods.requests import Request, Requests, class_sets, new_labels
from jaxunlearn.methods.results import Sweep
from jaxunlearn.methods.stacked import Descended, Stack
from jaxunlearn.methods.stacked_step import WAYS
from jaxunlearn.metrics.evaluation import evaluate, logits, num_classes
from jaxunlearn.tasks import Data, split_by_class


def sweep(
    classifier: Classifier,
    train: Data,
    requests: Requests,
    method: Any,
    *,
    key: Array,
    validation: Data | None = None,
    rates: Sequence[float] = (),
    how: str = "auto",
    mesh: Mesh | None = None,
    progress: Progress = no_progress,
) -> Sweep:
    """Forget many sets of classes, each in a copy of its own of one classifier.

    For every set of classes the result is that of `method(classifier, task, key=key)`
    (to rounding; CovarNav's proxies are inverted once for all, see `protect_each`), at
    a fraction of the cost:

    - one pass over the data gives the moments of every class, which add up to what each
      request retains (several passes where memory asks for them);
    - one forward pass gives all new labels;
    - one compiled program runs the steps of all requests, whose parameters, bases and
      minibatches are stacked: all at once under `vmap`, in turns on the device under
      `map` (of either, as many at a time as memory holds), or one request after
      another.

    Args:
      classifier: is not modified.
      train: the training data, forgotten and retained.
      requests: "each" class by itself, or sets of classes such as `[[0, 1], [2]]`.
      method: `UNSC`, `CovarNav` or `Unprojected`, whose fields hold for all requests.
      key: a `jax.random.key`, for every request the same.
      validation: what the grid of rates is judged by.
      rates: a grid of learning rates. The smallest is taken whose mean over the
        requests of Acc_r - Acc_f on validation data is within a point of the best;
        without a grid it is the method's own.
      how: "vmap", "map", "one by one"; or "auto", which takes requests one by one on a
        CPU, and elsewhere whichever of the first two computes a step faster.
      mesh: a one-axis mesh of this process over whose devices the requests are cut.
        None: on a GPU or TPU all of this process's devices, on a CPU one.
      progress: `(stage, done, total)`.

    Returns:
      A `Sweep`: a result for every request, and what they cost together.

    Raises:
      TypeError: the method's statistics cannot be shared, or an argument is of the
        wrong type.
      ValueError: what `class_sets` refuses, rates without validation data, a mesh that
        is not one axis of this process, no such `how`.
      FloatingPointError: a request's loss or parameters are not finite (at every rate
        of the grid, if there is one).

    >>> import flax.linen as nn
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1)
    >>> variables = model.init(jax.random.key(0), images)
    >>> variables["params"]["layers_1"]["kernel"] = 5 * jnp.eye(3)
    >>> classifier, data = ju.freeze(model, variables), ju.Data(images, [0, 1, 2])
    >>> method = ju.UNSC(learning_rate=1.0, steps=30)
    >>> found = ju.sweep(classifier, data, "each", method, key=jax.random.key(1))
    >>> [result.classifier(images).argmax(axis=1).tolist() for result in found.results]
    [[1, 1, 2], [0, 0, 2], [0, 1, 0]]
    """
    check_key(key)
    check_method(method)
    count = num_classes(classifier, train.images)
    sets = class_sets(requests, train, count)
    rates = _checked_rates(rates, validation, sets)
    mesh = _checked_mesh(how, mesh)
    watch = Stopwatch()
    # As in `Descent.__call__`, so that a request by itself draws the same.
    setting_key, steps_key = jax.random.split(key)
    labels_key, protect_key = jax.random.split(setting_key)
    with watch.stage("labels"):
        reads = needs_logits(method.targets)
        outputs = logits(classifier, train.images, mesh=mesh) if reads else None
        labelled = new_labels(
            method.targets, outputs, train, sets, count, key=labels_key
        )
    protection = protect_each(
        method,
        classifier,
        train,
        sets,
        count,
        key=protect_key,
        progress=progress,
        mesh=mesh,
        watch=watch,
    )
    stack = Stack(
        classifier,
        train,
        labelled,
        protection,
        key=steps_key,
        how=None if how == "auto" else how,
        mesh=mesh,
    )
    trials: list[Trial] = []
    if rates:
        with watch.stage("rates"):
            method, trials = _chosen(
                method, classifier, stack, sets, validation, rates, progress, mesh
            )
    with watch.stage("steps"):
        descended = stack.descend(method, progress)
        results = _results(classifier, labelled, protection, descended, method)
    reads_labels = 0 if outputs is None else 1
    steps = sum(r.trace.samples_read["forget"] for r in results)
    passes = {"statistics": protection.passes, "labels": reads_labels}
    of_statistics = len(train) if protection.proxies is None else 0
    return Sweep(
        sets,
        results,
        learning_rate=method.learning_rate,
        trials=tuple(trials),
        how=stack.how,
        at_once=stack.at_once,
        step_seconds=stack.step_seconds,
        passes=passes,
        samples_read={
            "statistics": protection.passes * of_statistics,
            "labels": reads_labels * len(train),
            "steps": steps,
        },
        seconds=watch.seconds,
        proxies=protection.proxies,
    )


def _checked_rates(rates, validation, sets) -> list[float]:
    rates = sorted(rates)
    if not rates:
        return rates
    if not (rates[0] > 0 and math.isfinite(rates[-1])):
        msg = f"rates must be positive and finite; they are {rates}."
        raise ValueError(msg)
    if validation is None:
        msg = "rates are judged on validation data: pass validation=..., or no rates."
        raise ValueError(msg)
    for classes in sets:
        split_by_class(validation, classes)
    return rates


def _checked_mesh(how, mesh) -> Mesh | None:
    if how not in ("auto", *WAYS):
        known = ", ".join(map(repr, ("auto", *WAYS)))
        msg = f"how must be one of {known}; it is {how!r}."
        raise ValueError(msg)
    mesh = parallel.mesh_for_rows(mesh)
    if mesh is not None and mesh.is_multi_process:
        msg = (
            "mesh holds devices of several processes: a sweep runs on those of one, "
            "jax.local_devices(). Give each process requests of its own."
        )
        raise ValueError(msg)
    return mesh


def _chosen(
    method, classifier, stack, sets, validation, rates, progress, mesh
) -> tuple[Descent, list[Trial]]:
    """The method at the rate that is best for all requests, and all trials.

    The rule is that of `choose_learning_rate`, on means over the requests.
    """
    trials = []
    for number, rate in enumerate(rates):
        progress("rates", number, len(rates))
        try:
            ends = stack.descend(method.replace(learning_rate=rate), no_progress)
            judged = [
                evaluate(classifier.replace(params=p), validation, classes, mesh=mesh)
                for p, classes in zip(ends.params, sets, strict=True)
            ]
        except FloatingPointError:
            continue
        means = (
            sum(getattr(found, name) for found in judged) / len(judged)
            for name in ("retained", "forgotten")
        )
        trials.append(Trial(rate, *means))
    progress("rates", len(rates), len(rates))
    if not trials:
        msg = f"At no learning rate of {rates} are the losses of all requests finite: extend the grid downwards."  # noqa: E501
        raise FloatingPointError(msg)
    return method.replace(learning_rate=smallest_good_rate(trials)), trials


def _results(
    classifier: Classifier,
    requests: list[Request],
    protection: Protection,
    descended: Descended,
    method: Descent,
) -> tuple[Result, ...]:
    found = []
    ends = on_device_if_they_fit(descended.params)
    parts = (requests, protection.ranks, ends, descended.losses)
    for request, ranks, params, losses in zip(*parts, strict=True):
        read = method.steps * min(len(request.rows), method.batch_size)
        trace = Trace(losses, ranks, samples_read={"forget": read, "retain": 0})
        found.append(Result(classifier.replace(params=params), trace))
    return tuple(found)
