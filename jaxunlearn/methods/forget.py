"""One request or many: statistics once, new labels once, then everybody's steps."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.checks import check_key
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result
from jaxunlearn.methods.grid import Trial, check_grid, choose
from jaxunlearn.methods.preparation import Prepared
from jaxunlearn.methods.requests import Requests, Sets, class_sets
from jaxunlearn.methods.results import Sweep
from jaxunlearn.methods.stacked import WAYS
from jaxunlearn.metrics.evaluation import evaluate, num_classes
from jaxunlearn.progress import Progress, reporting
from jaxunlearn.tasks import Data, Task


def forget(
    method: Any,
    classifier: Classifier,
    train: Data,
    requests: Sets,
    *,
    key: Array,
    validation: Data | None = None,
    grid: Sequence[float] | None = None,
    mesh: Mesh | None = None,
    progress: Progress = None,
) -> list[Result]:
    """Forget one set of classes, or many, each in a copy of its own of one classifier.

    For every set the result is that of `method(classifier, task, key=key)`, to
    rounding. What requests can share is done once; see `sweep`, which also tells what
    they cost together.

    Args:
      method: a method of `jaxunlearn.methods`, or any function
        `(classifier, task, *, key) -> Result`, which is called for each request.
      classifier: is not modified.
      train: the training data, forgotten and retained.
      requests: "each" class by itself, or sets of classes such as `[[0, 1], [2]]`.
      key: a `jax.random.key`, for every request the same.
      validation: what the grid is judged by.
      grid: values of the field that the method names as `tuned`, such as
        "learning_rate". The smallest is taken whose mean over the requests of
        Acc_r - Acc_f on validation data is within a point of the best. None: the
        method's own value.
      mesh: a one-axis mesh. A single request's images are cut over its devices, several
        requests are themselves. None: on a GPU or TPU all of this process's devices, on
        a CPU one.
      progress: None, "bar", or a function `(stage, done, total)`.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: what `class_sets` refuses, a grid without validation data or of values
        that the method refuses, several requests and a mesh of several processes.
      FloatingPointError: a loss or parameters are not finite (at every value of the
        grid, if there is one).

    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1)
    >>> variables = model.init(jax.random.key(0), images)
    >>> variables["params"]["layers_1"]["kernel"] = 5 * jnp.eye(3)
    >>> classifier, data = ju.freeze(model, variables), ju.Data(images, [0, 1, 2])
    >>> method = ju.UNSC(learning_rate=1.0, steps=30)
    >>> (result,) = ju.forget(method, classifier, data, [[0]], key=jax.random.key(1))
    >>> result.classifier(images).argmax(axis=1).tolist()
    [1, 1, 2]
    """
    swept = sweep(
        *(classifier, train, requests, method),
        key=key,
        validation=validation,
        rates=grid or (),
        mesh=mesh,
        progress=progress,
    )
    return list(swept.results)


def sweep(
    classifier: Classifier,
    train: Data,
    requests: Sets,
    method: Any,
    *,
    key: Array,
    validation: Data | None = None,
    rates: Sequence[float] = (),
    how: str = "auto",
    mesh: Mesh | None = None,
    progress: Progress = None,
) -> Sweep:
    """`forget`, with what all requests cost together.

    The requests of a method that relabels and projects share

    - one pass over the data for the moments of every class, which add up to what each
      request retains (several passes where memory asks for them);
    - one forward pass for all new labels;
    - one compiled program for the steps of all requests, whose parameters, bases and
      minibatches are stacked: all at once under `vmap`, in turns on the device under
      `map` (of either, as many at a time as memory holds), or one request after
      another.

    CovarNav's proxies are inverted once, into images of every class, and a request
    leaves out those of its own classes.

    Args:
      classifier: is not modified.
      train: as for `forget`, like `requests`, `method`, `key` and `validation`.
      requests: what to forget.
      method: its fields hold for all requests.
      key: a `jax.random.key`.
      validation: what the grid is judged by.
      rates: the grid.
      how: "vmap", "map", "one by one"; or "auto", which takes requests one by one on a
        CPU, and elsewhere whichever of the first two computes a step faster.
      mesh: a one-axis mesh of this process over whose devices the requests are cut.
      progress: as for `forget`.

    Returns:
      A `Sweep`: a result for every request, and what they cost together.

    Raises:
      TypeError: as for `forget`.
      ValueError: as for `forget`, or no such `how`.
      FloatingPointError: as for `forget`.

    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)])
    >>> images = np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1)
    >>> variables = model.init(jax.random.key(0), images)
    >>> variables["params"]["layers_1"]["kernel"] = 5 * jnp.eye(3)
    >>> classifier, data = ju.freeze(model, variables), ju.Data(images, [0, 1, 2])
    >>> method = ju.UNSC(learning_rate=1.0, steps=30)
    >>> swept = ju.sweep(classifier, data, "each", method, key=jax.random.key(1))
    >>> [result.classifier(images).argmax(axis=1).tolist() for result in swept.results]
    [[1, 1, 2], [0, 0, 2], [0, 1, 0]]
    """
    if how not in ("auto", *WAYS):
        known = ", ".join(map(repr, ("auto", *WAYS)))
        msg = f"how must be one of {known}; it is {how!r}."
        raise ValueError(msg)
    count = num_classes(classifier, train.images)
    return _run(
        *(method, classifier),
        Requests.of_sets(class_sets(requests, train, count), train, count),
        key=key,
        validation=validation,
        grid=rates,
        how=None if how == "auto" else how,
        mesh=mesh,
        progress=progress,
    )


def forget_task(
    method: Any,
    classifier: Classifier,
    task: Task,
    *,
    key: Array,
    validation: Data | None = None,
    grid: Sequence[float] | None = None,
    mesh: Mesh | None = None,
    progress: Progress = None,
) -> Result:
    """`forget` for a single request, given as a `Task`: classes, or samples.

    Its trace has the value that was chosen and the trials. Over several processes all
    arguments are the same in each, and so is the result.
    """
    swept = _run(
        *(method, classifier, Requests.of_task(task)),
        key=key,
        validation=validation,
        grid=grid,
        mesh=mesh,
        progress=progress,
    )
    return swept.results[0]


def _run(
    method: Any,
    classifier: Classifier,
    requests: Requests,
    *,
    key: Array,
    validation: Data | None,
    grid: Sequence[float] | None,
    how: str | None = None,
    mesh: Mesh | None,
    progress: Progress,
) -> Sweep:
    check_key(key)
    if not callable(method):
        msg = f"method must be called as (classifier, task, key=key), such as UNSC(); it is {method!r}."  # noqa: E501
        raise TypeError(msg)
    candidates = check_grid(method, grid, validation, requests.classes)
    watch, trials = Stopwatch(), ()
    with reporting(progress) as report:
        given = {"key": key, "mesh": mesh, "watch": watch}
        shares = hasattr(method, "statistics")
        if shares:
            given |= {"how": how, "progress": report}
        run = (Prepared if shares else _EachByItself)(
            method, classifier, requests, **given
        )

        def judge(candidate):
            results = run(candidate)
            pairs = zip(results, requests.classes, strict=True)
            judged = [
                evaluate(result.classifier, validation, classes, mesh=mesh)
                for result, classes in pairs
            ]
            return tuple(
                float(np.mean([getattr(one, name) for one in judged]))
                for name in ("retained", "forgotten")
            )

        if candidates:
            with watch.stage("rates"):
                method, trials = choose(candidates, judge, report)
        with watch.stage("steps"):
            results = run(method, report)
    return _sweep(method, requests, run, results, trials, watch)


class _EachByItself:
    """Requests of a method that has nothing to share: it is called for each."""

    def __init__(self, method, classifier, requests, *, key, mesh, watch):
        del watch  # The method's results bring their own seconds.
        self._given = classifier, key, mesh
        self._requests = requests
        taken = inspect.signature(method).parameters
        everything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        self._options = {n for n in ("mesh", "progress") if n in taken or everything}

    def __call__(self, method, progress=None) -> list[Result]:
        classifier, key, mesh = self._given
        options = {"mesh": mesh, "progress": progress}
        options = {name: options[name] for name in self._options}
        return [
            method(classifier, task, key=key, **options)
            for task in self._requests.tasks()
        ]

    def alone(self, result: Result, seconds: dict[str, float]) -> Result:
        own = dict(result.trace.seconds)
        own |= {name: seconds[name] for name in ("rates",) if name in seconds}
        trace = dataclasses.replace(result.trace, seconds=own)
        return dataclasses.replace(result, trace=trace)

    def costs(self) -> dict[str, Any]:
        nothing = {"statistics": 0, "labels": 0}
        how = {"how": "one by one", "at_once": 1, "step_seconds": {}, "proxies": None}
        return {**how, "passes": nothing, "samples_read": nothing}


def _sweep(
    method: Any,
    requests: Requests,
    run: Prepared | _EachByItself,
    results: list[Result],
    trials: tuple[Trial, ...],
    watch: Stopwatch,
) -> Sweep:
    """The results, and what they cost together."""
    field = getattr(method, "tuned", None)
    tuned = {} if field is None else {field: getattr(method, field)}
    costs = run.costs()
    steps = sum(sum(r.trace.samples_read.values()) for r in results)
    costs["samples_read"] = {**costs["samples_read"], "steps": steps}
    if len(results) == 1:
        results = [run.alone(results[0], watch.seconds)]
    told = [
        dataclasses.replace(
            result,
            trace=dataclasses.replace(result.trace, tuned=tuned, trials=trials),
        )
        for result in results
    ]
    return Sweep(
        requests.classes,
        tuple(told),
        tuned=tuned,
        trials=trials,
        seconds=watch.seconds,
        **costs,
    )
