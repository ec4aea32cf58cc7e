"""What the baselines that descend on an objective of their own have in common."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxunlearn.checks import (
    check_count,
    check_key,
    check_nonnegative,
    check_positive,
    check_type,
)
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.descent.loop import (
    chunk_length,
    gather_minibatches,
    minibatches,
    run_steps,
)
from jaxunlearn.descent.optimizers import start_optimizer
from jaxunlearn.descent.step import (
    check_losses,
    check_parameters,
    to_pixels,
    update_params,
)
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.descent.unlearning import Result, Trace
from jaxunlearn.methods.requests import check_samplewise
from jaxunlearn.progress import Progress, reporting
from jaxunlearn.tasks import Data, Task

# (constants, classifier, {set: (images, targets)}, key) -> the loss of one minibatch
Objective = Callable[[PyTree, Classifier, Mapping[str, Any], Array], Array]

_ADVICE = "Lower the learning rate."


class Phase(NamedTuple):
    """A descent of so many steps, on the sets of these names."""

    objective: Objective
    optimizer: optax.GradientTransformation
    steps: int
    sets: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """Descend on an objective over minibatches of the forget and the retain set.

    All parameters move, biases and normalisation too; the network stays in inference
    mode, so that its state does not change. A method of this kind says three things:
    `sets`, the images and targets that minibatches are drawn from; `objective`, a
    static function of `(constants, classifier, minibatches, key)`; and, if it needs
    any, `constants`, the arrays that go with it. One that descends from elsewhere says
    `start` and `finish`, and one that does so on several objectives in turn `phases`.

    Attributes:
      learning_rate: the learning rate of SGD.
      momentum: the momentum of SGD.
      weight_decay: of all parameters, coupled as in PyTorch's SGD.
      steps: how many minibatches to descend on.
      batch_size: images of each set in a minibatch; all of them if there are fewer.
    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    steps: int = 100
    batch_size: int = 64

    changes_state: ClassVar[bool] = False
    changes_network: ClassVar[bool] = False
    # Whether images of the retained set are read.
    reads_retained: ClassVar[bool] = True
    # Whether accuracy on the forget set is meant to fall.
    forgets: ClassVar[bool] = True
    tuned: ClassVar[str | None] = "learning_rate"

    def __post_init__(self):
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size)
        check_positive("learning_rate", self.learning_rate)
        check_nonnegative("weight_decay", self.weight_decay)
        if not 0 <= self.momentum < 1:
            msg = f"momentum must lie in [0, 1); it is {self.momentum}."
            raise ValueError(msg)

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """Of so many retained images and classes: what `planning.Workload` asks."""
        del retained, classes
        return {"images": 0}

    def sets(self, classifier: Classifier, task: Task, key: Array) -> dict[str, Any]:
        """`(images, targets)` by name; minibatches are drawn from each."""
        raise NotImplementedError

    def constants(self, classifier: Classifier, task: Task, key: Array) -> PyTree:
        """Arrays that the objective reads, such as a teacher's parameters."""
        del classifier, task, key
        return ()

    def objective(self) -> Objective:
        """What a step minimises: a module-level function, or one of equal value."""
        raise NotImplementedError

    def measured(self, classifier: Classifier, task: Task, key: Array) -> tuple:
        """All that no learning rate changes: sets, constants, where to start."""
        key, _, _ = jax.random.split(key, 3)
        given = classifier, task, key
        return self.sets(*given), self.constants(*given), self.start(*given)

    def phases(self, sets: Mapping[str, Any], constants: PyTree) -> Sequence[Phase]:
        """What is done in turn, each with an optimizer of its own."""
        return [
            Phase(self.objective(), self.optimizer(constants), self.steps, tuple(sets))
        ]

    def start(self, classifier: Classifier, task: Task, key: Array) -> Classifier:
        """The classifier that the descent starts from."""
        del task, key
        return classifier

    def finish(self, params: PyTree) -> PyTree:
        """Of the parameters that it ended at those of the network."""
        return params

    def optimizer(self, constants: PyTree) -> optax.GradientTransformation:
        """SGD, whose rate is in its state: a grid of rates compiles once."""
        del constants
        sgd = optax.inject_hyperparams(optax.sgd)(
            learning_rate=self.learning_rate, momentum=self.momentum
        )
        if not self.weight_decay:
            return sgd
        return optax.chain(optax.add_decayed_weights(self.weight_decay), sgd)

    def __call__(
        self,
        classifier: Classifier | Any,
        task: Task | Any,
        *,
        key: Array,
        progress: Progress = None,
        measured: tuple | None = None,
    ) -> Result:
        """Forget `task.forget`; `classifier` is not modified.

        `measured` is what the method of that name returned for the same arguments.

        Raises:
          TypeError: an argument is of the wrong type.
          ValueError: retained data are needed, and there are none.
          FloatingPointError: a loss, or a parameter at the end, is not finite.
        """
        check_call(classifier, task, key)
        _, order, draw = jax.random.split(key, 3)
        watch = Stopwatch()
        if measured is None:
            with watch.stage("statistics"):
                measured = self.measured(classifier, task, key)
        sets, constants, current = measured
        phases = self.phases(sets, constants)
        total, losses = sum(phase.steps for phase in phases), []
        read = {"forget": 0, "retain": 0}
        with watch.stage("steps"), reporting(progress) as report:
            for number, phase in enumerate(phases):
                done = sum(map(len, losses))
                params, values = minimise(
                    current,
                    {name: sets[name] for name in phase.sets},
                    phase.objective,
                    phase.optimizer,
                    steps=phase.steps,
                    batch_size=self.batch_size,
                    key=jax.random.fold_in(order, number),
                    draw=jax.random.fold_in(draw, number),
                    constants=constants,
                    report=lambda s, n, _, done=done: report(s, done + n, total),
                )
                current = current.replace(params=params)
                losses.append(values)
                for name in read.keys() & set(phase.sets):
                    size = min(self.batch_size, len(sets[name][0]))
                    read[name] += phase.steps * size
        trace = Trace(
            losses=np.concatenate(losses), seconds=watch.seconds, samples_read=read
        )
        return Result(classifier.replace(params=self.finish(current.params)), trace)

    def replace(self, **fields: Any) -> "Baseline":
        """A copy with these fields replaced."""
        return dataclasses.replace(self, **fields)


@dataclasses.dataclass(frozen=True)
class _Step:
    """One update on a minibatch of every set. Static, and equal to its equals."""

    objective: Objective
    update: Callable[..., Any]

    def __call__(self, carry, constants, index, row):
        params, state = carry
        classifier, key, given, update_consts = constants
        row = {name: (to_pixels(x), y) for name, (x, y) in row.items()}
        key = jax.random.fold_in(key, index)

        def loss(params):
            current = classifier.replace(params=params)
            return self.objective(given, current, row, key), None

        update = functools.partial(self.update, update_consts)
        carry, value, _ = update_params(loss, params, state, update)
        return carry, value


def minimise(
    classifier: Classifier,
    sets: Mapping[str, tuple[Any, Any]],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int,
    key: Array,
    draw: Array,
    constants: PyTree = (),
    report: Callable[[str, int, int], Any] = lambda stage, done, total: None,
) -> tuple[PyTree, np.ndarray]:
    """Parameters after `steps` updates on minibatches of every set, and the losses.

    The sets are shuffled by `key`, each for itself; `draw` is folded with the step's
    number for what the objective draws.
    """
    arrays, orders, row_bytes = {}, {}, 1
    for number, (name, (images, targets)) in enumerate(sets.items()):
        size = min(batch_size, len(images))
        arrays[name] = jax.device_put(images), jax.device_put(targets)
        orders[name] = minibatches(jax.random.fold_in(key, number), len(images), size)
        row_bytes += 4 * size * int(np.prod(images.shape[1:]))

    def feed(first, stop):
        return {
            name: gather_minibatches(arrays[name], orders[name], None, first, stop)
            for name in arrays
        }

    def on_chunk(stop, carry, losses):
        del carry
        check_losses(losses, stop - len(losses), _ADVICE)
        report("steps", stop, steps)

    update, state = start_optimizer(optimizer, classifier.params, jnp.float32)
    (params, _), losses = run_steps(
        _Step(objective, update.run),
        (classifier.params, state),
        (classifier.replace(params=None), draw, constants, update.consts),
        steps=steps,
        feed=feed,
        chunk=chunk_length(row_bytes),
        on_chunk=on_chunk,
    )
    check_parameters(params)
    return params, losses


def check_call(classifier: Any, task: Any, key: Any) -> None:
    """Refuse arguments of a method that are of another type."""
    check_classifier(classifier)
    check_type("task", task, Task, "Task(forget, retain, ...) makes one.")
    check_key(key)


def check_whole_classes(task: Task, method: Any) -> None:
    """Refuse samples, for a method that is `classwise`."""
    if not task.forget_classes:
        check_samplewise(method)


def labelled(data: Data) -> tuple[Any, np.ndarray]:
    """Images and labels, as `minimise` takes a set."""
    return data.images, data.labels


def retained(task: Task, method: Any) -> Data:
    """The retain set, which this method reads."""
    if task.retain is None or not len(task.retain):
        name = type(method).__name__
        msg = f"{name} reads retained data, of which this task has none: Task(retain=...)."  # noqa: E501
        raise ValueError(msg)
    return task.retain


def drawn(data: Data, count: int | None, key: Array) -> Data:
    """So many of them, drawn by the key, in their order; all if there are no more."""
    if count is None or count >= len(data):
        return data
    order = np.asarray(jax.random.permutation(key, len(data)))
    return data.take(np.sort(order[:count]))


def fresh(classifier: Classifier, task: Task, key: Array, method: Any) -> Classifier:
    """The classifier as it would be drawn anew, which this method starts from."""
    try:
        params, state = classifier.network.init(key, task.forget.images.shape[1:])
    except TypeError as error:
        name = type(method).__name__
        msg = f"{name} needs freshly drawn parameters of this network. {error}"
        raise TypeError(msg) from error
    return classifier.replace(params=params, state=state)
