"""One request or many: statistics once, new labels once, then everybody's steps."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.checks import (
    check_choice,
    check_eager,
    check_key,
    check_type,
    short,
)
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result
from jaxunlearn.methods.each import EachByItself
from jaxunlearn.methods.grid import check_grid, choose
from jaxunlearn.methods.preparation import Prepared
from jaxunlearn.methods.requests import Requests, Sets, check_samplewise, class_sets
from jaxunlearn.methods.rules import (
    ClassRule,
    NotForgotten,
    SampleRule,
    SampleTrial,
    Trial,
)
from jaxunlearn.methods.stacked import WAYS
from jaxunlearn.metrics.evaluation import Evaluation, evaluate, num_classes
from jaxunlearn.progress import Progress, reporting
from jaxunlearn.tasks import Data, Task, check_data


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """The unlearned classifiers of many requests, and how they came about.

    Attributes:
      requests: the classes that each request forgets.
      results: a classifier for each, with its losses and ranks. What requests share is
        counted here and, but for a single one, not in their traces. Parameters that
        together would fill a device stay on the host, as NumPy arrays.
      tuned: the value of the method's tuned field that all have, by its name.
      trials: what each value of the grid led to on validation data, as means over the
        requests.
      at_edge: whether the value was chosen at an end of all that were tried.
      how: how one step of many requests was computed: "vmap", "map" or "one by one".
      at_once: of how many requests, over all devices: all, or as many as memory held.
      step_seconds: where that was chosen by measurement, seconds of a step of all
        requests each way.
      passes: how often the training data were read for "statistics" and for "labels".
      samples_read: samples that were read for "statistics", "labels" and the final
        "steps", repeats included.
      seconds: wall time by stage, "compile" apart.
      proxies: images that stood in for retained data, or None.
    """

    requests: tuple[tuple[int, ...], ...]
    results: tuple[Result, ...]
    tuned: Mapping[str, float]
    trials: tuple[Trial | SampleTrial, ...]
    at_edge: bool
    how: str
    at_once: int
    step_seconds: Mapping[str, float]
    passes: Mapping[str, int]
    samples_read: Mapping[str, int]
    seconds: Mapping[str, float]
    proxies: Any = None

    def evaluate(self, data: Data, *, mesh: Mesh | None = None) -> list[Evaluation]:
        """Accuracies of every unlearned classifier; see `jaxunlearn.evaluate`."""
        return _evaluations(self.results, self.requests, data, mesh)


def forget(
    method: Any,
    classifier: Classifier | Any,
    train: Data | Any,
    requests: Sets,
    *,
    key: Array,
    validation: Data | Any | None = None,
    grid: Iterable[float] | None = None,
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
      requests: "each" class by itself, or sets of classes such as `[[0, 1], [2]]`; by
        name, `[["bee", "ant"], ["wasp"]]`, where `train` has `class_names`.
      key: a `jax.random.key`, for every request the same.
      validation: samples of all classes, by which the grid is judged; methods find it
        in their task.
      grid: values of the field that the method names as `tuned`, such as
        "learning_rate". The smallest is taken whose mean over the requests of
        Acc_r - Acc_f on validation data is within a point of the best. Of three or
        more, an end that is chosen is gone beyond, by a decade at a time and two at
        most; `at_edge` says where that did not suffice. None: the method's own value.
      mesh: a one-axis mesh. A single request's images are cut over its devices, several
        requests are themselves. None: on a GPU or TPU all of this process's devices, on
        a CPU one.
      progress: None, "bar", or a function `(stage, done, total)`.

    Raises:
      TypeError: an argument is of the wrong type.
      ValueError: requests that are empty, given twice, name no class or leave none; a
        grid without validation data or of values that the method refuses; several
        requests and a mesh of several processes.
      FloatingPointError: a loss or parameters are not finite (at every value of the
        grid, if there is one).

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import jaxunlearn as ju
    >>> def logits(params, state, images):
    ...     return images.reshape(len(images), -1) @ params["kernel"]
    >>> classifier = ju.freeze(ju.Function(logits, {"kernel": 5 * jnp.eye(3)}))
    >>> images = np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1)
    >>> data, method = ju.Data(images, [0, 1, 2]), ju.UNSC(learning_rate=1.0, steps=30)
    >>> (result,) = ju.forget(method, classifier, data, [[0]], key=jax.random.key(1))
    >>> result.classifier(images).argmax(axis=1).tolist()
    [1, 1, 2]
    """
    given = {"key": key, "validation": validation, "mesh": mesh, "progress": progress}
    rates = () if grid is None else grid
    return list(
        sweep(classifier, train, requests, method, rates=rates, **given).results
    )


def sweep(
    classifier: Classifier | Any,
    train: Data | Any,
    requests: Sets,
    method: Any,
    *,
    key: Array,
    validation: Data | Any | None = None,
    rates: Iterable[float] = (),
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

    Raises:
      TypeError: as for `forget`.
      ValueError: as for `forget`, or no such `how`.
      FloatingPointError: as for `forget`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import jaxunlearn as ju
    >>> def logits(params, state, images):
    ...     return images.reshape(len(images), -1) @ params["kernel"]
    >>> classifier = ju.freeze(ju.Function(logits, {"kernel": 5 * jnp.eye(3)}))
    >>> images = np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1)
    >>> data, method = ju.Data(images, [0, 1, 2]), ju.UNSC(learning_rate=1.0, steps=30)
    >>> swept = ju.sweep(classifier, data, "each", method, key=jax.random.key(1))
    >>> [result.classifier(images).argmax(axis=1).tolist() for result in swept.results]
    [[1, 1, 2], [0, 0, 2], [0, 1, 0]]
    """
    check_choice("how", how, ("auto", *WAYS))
    check_data("train", train)
    _check_types(method, classifier, key, validation)
    check_eager("forget", classifier, train.images)
    count = num_classes(classifier, train.images)
    sets = class_sets(requests, train, count)
    wanted = Requests.of_sets(sets, train, count, validation)
    how = None if how == "auto" else how
    return _run(method, classifier, wanted, key, validation, rates, how, mesh, progress)


def forget_task(
    method: Any,
    classifier: Classifier | Any,
    task: Task | Any,
    *,
    key: Array,
    validation: Data | Any | None = None,
    grid: Iterable[float] | None = None,
    mesh: Mesh | None = None,
    progress: Progress = None,
) -> Result:
    """`forget` for a single request, given as a `Task`: classes, or samples.

    Its trace has the value that was chosen and the trials. Over several processes all
    arguments are the same in each, and so is the result.

    For samples a grid is judged by another rule (`methods.rules.SampleRule`): a model
    retrained without them is about as right on them as on others of their classes, so
    that accuracy on them is to come near that on validation samples, at a cost of at
    most a point of validation accuracy. Validation samples that are among the forget
    set do not count.

    Warns:
      NotForgotten: no value does so; the gentlest was taken. Its trace says the same.

    Raises:
      ValueError: what `forget` refuses; validation data without a sample of a forgotten
        class; a method of whole classes, where samples are to be forgotten.
    """
    check_type("task", task, Task, "Task(forget, retain, ...) makes one.")
    _check_types(method, classifier, key, validation)
    check_eager("forget", classifier, task.forget.images)
    if validation is not None:
        task = dataclasses.replace(task, validation=validation)
    wanted = Requests.of_task(task)
    given = method, classifier, wanted, key, task.validation, grid, None, mesh, progress
    return _run(*given).results[0]


def _run(
    method: Any,
    classifier: Classifier | Any,
    requests: Requests,
    key: Array,
    validation: Data | Any | None,
    grid: Iterable[float] | None,
    how: str | None,
    mesh: Mesh | None,
    progress: Progress,
) -> Sweep:
    if not requests.task.forget_classes and len(requests) == 1:
        check_samplewise(method)
    candidates = check_grid(method, grid, validation, requests.classes)
    watch, trials, at_edge, caution = Stopwatch(), (), False, ""
    with reporting(progress) as report:
        if candidates:
            with watch.stage("rates"):
                rule = _rule(classifier, requests, validation, mesh)
        kind = Prepared if hasattr(method, "statistics") else EachByItself
        run = kind(method, classifier, requests, key, how, mesh, report, watch)

        if candidates:
            with watch.stage("rates"):
                method, trials, at_edge = choose(
                    candidates, lambda c: rule.judge(run(c)), report, rule
                )
        with watch.stage("steps"):
            results = run(method, report)
    if candidates:
        caution = rule.caution(method, trials, results[0])
    field = getattr(method, "tuned", None)
    tuned = {} if field is None else {field: getattr(method, field)}
    costs = run.costs()
    steps = sum(sum(r.trace.samples_read.values()) for r in results)
    if len(results) == 1:
        results = [_with_costs(results[0], costs, watch.seconds)]
    noted = {"tuned": tuned, "trials": trials, "at_edge": at_edge}
    results = tuple(
        _noted(r, **noted, caution=caution or r.trace.caution) for r in results
    )
    if caution:
        warnings.warn(caution, NotForgotten, stacklevel=3)
    costs["samples_read"] = {**costs["samples_read"], "steps": steps}
    own = {"requests": requests.classes, "results": results, **noted}
    return Sweep(**own, seconds=watch.seconds, **costs)


def _rule(classifier, requests, validation, mesh) -> ClassRule | SampleRule:
    """By which a value is chosen: for samples another one than for classes."""
    if any(requests.classes):
        return ClassRule(requests.classes, validation, mesh)
    return SampleRule(classifier, requests.task.forget, validation, mesh)


def _check_types(method, classifier, key, validation) -> None:
    check_classifier(classifier)
    check_key(key)
    if validation is not None:
        check_data("validation", validation)
    if not callable(method) or isinstance(method, type):
        msg = f"method must be called as (classifier, task, key=key), such as UNSC(); it is {short(method)}."  # noqa: E501
        raise TypeError(msg)


def _evaluations(results, requests, data: Data, mesh) -> list[Evaluation]:
    pairs = zip(results, requests, strict=True)
    return [evaluate(r.classifier, data, classes, mesh=mesh) for r, classes in pairs]


def _with_costs(result: Result, costs: Mapping[str, Any], seconds) -> Result:
    """The only result, with what would be shared with others in its own trace."""
    trace, shared = result.trace, costs["samples_read"]
    read = {"forget": 0, "retain": 0, **trace.samples_read}
    read["forget"] += shared["labels"]
    read["retain"] += shared["statistics"]
    proxies = trace.proxies if costs["proxies"] is None else costs["proxies"]
    seconds = {**seconds, **trace.seconds}
    return _noted(result, samples_read=read, proxies=proxies, seconds=seconds)


def _noted(result: Result, **fields: Any) -> Result:
    """The result, with these fields in its trace."""
    trace = dataclasses.replace(result.trace, **fields)
    return dataclasses.replace(result, trace=trace)
