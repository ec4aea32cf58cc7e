"""What the methods that descend on new labels have in common."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxunlearn import augmentation
from jaxunlearn.capture.inputs import layouts
from jaxunlearn.capture.layout import path_name
from jaxunlearn.checks import check_count, check_key
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.unlearning import Result, Trace, cross_entropy, unlearn
from jaxunlearn.methods.relabel import (
    nearest_retained_labels,
    random_retained_labels,
    retained_probabilities,
    runner_up_labels,
)
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.nullspace.projection import project_to_null_space, shrink_to_null_space
from jaxunlearn.nullspace.rank_rules import choose_rule
from jaxunlearn.nullspace.subspace import Subspace, subspaces
from jaxunlearn.tasks import Task

Targets = Literal[
    "runner-up", "nearest-retained", "retained-probabilities", "random", "true"
]

# (stage, steps done, steps in all), called now and then.
Progress = Callable[[str, int, int], Any]


def no_progress(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


class Setting(NamedTuple):
    """All that does not depend on the learning rate: made once, descended on often.

    Attributes:
      targets: new labels `[n]`, or probabilities `[n, k]`.
      projection: the last step of the optimizer's chain.
      trace: what making it cost and found.
    """

    targets: Array
    projection: optax.GradientTransformation
    trace: Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descent:
    """Descend on new labels for the forget set; only weights that have inputs move.

    Attributes:
      learning_rate: the learning rate of SGD.
      momentum: the momentum of SGD.
      steps: how many minibatches to descend on.
      batch_size: images in each minibatch; all of them if there are fewer.
      targets: the new labels. "runner-up": the likeliest class that is neither the
        label nor forgotten. "nearest-retained": the likeliest retained class.
        "retained-probabilities": softmax over the retained classes. "random": a
        retained class drawn uniformly. "true": the labels as they are, an ablation.
        Where samples and not classes are forgotten, only the sample's own label is
        excluded, and the first two are the same.
      augment: what is done to each minibatch at random, a name of
        `augmentation.by_name`: "none", or "crop-flip" as UNSC does on CIFAR and SVHN.
        New labels are those of the images as they are.
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    steps: int = 100
    batch_size: int = 256
    targets: Targets = "nearest-retained"
    augment: str = "none"

    changes_state: ClassVar[bool] = False
    changes_network: ClassVar[bool] = False

    def __post_init__(self):
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size)
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            msg = f"learning_rate must be positive; it is {self.learning_rate}."
            raise ValueError(msg)
        if not 0 <= self.momentum < 1:
            msg = f"momentum must lie in [0, 1); it is {self.momentum}."
            raise ValueError(msg)
        if self.targets not in Targets.__args__:
            msg = f"targets must be one of {Targets.__args__}; it is {self.targets!r}."
            raise ValueError(msg)
        if self.augment not in augmentation.by_name:
            there = ", ".join(augmentation.by_name)
            msg = f"augment must be one of {there}; it is {self.augment!r}."
            raise ValueError(msg)

    def __call__(
        self,
        classifier: Classifier,
        task: Task,
        *,
        key: Array,
        progress: Progress = no_progress,
        mesh: Mesh | None = None,
    ) -> Result:
        """Forget `task.forget`.

        Args:
          classifier: is not modified.
          task: what to forget.
          key: a `jax.random.key`.
          progress: `(stage, done, total)`, for a progress bar.
          mesh: a one-axis mesh over whose devices all that reads images is cut. None:
            on a GPU or TPU all of this process's devices, on a CPU one. Under several
            processes all arguments are the same in each, and so is the result.
        """
        check_key(key)
        setting_key, steps_key = jax.random.split(key)
        shown = {"progress": progress, "mesh": mesh}
        setting = self.prepare(classifier, task, key=setting_key, **shown)
        return self.descend(classifier, task, setting, key=steps_key, **shown)

    def prepare(
        self,
        classifier: Classifier,
        task: Task,
        *,
        key: Array,
        progress: Progress = no_progress,
        mesh: Mesh | None = None,
    ) -> Setting:
        """New labels, and what the updates must leave alone."""
        labels_key, protect_key = jax.random.split(key)
        targets = new_targets(self.targets, classifier, task, key=labels_key, mesh=mesh)
        projection, trace = self.protect(
            classifier, task, key=protect_key, progress=progress, mesh=mesh
        )
        read = {"forget": 0, "retain": 0, **trace.samples_read}
        read["forget"] += len(task.forget)
        surviving = surviving_gradient(
            classifier, task.forget.images[: self.batch_size], targets, projection
        )
        trace = dataclasses.replace(
            trace, samples_read=read, surviving_gradient=surviving
        )
        return Setting(targets, projection, trace)

    def protect(
        self,
        classifier: Classifier,
        task: Task,
        *,
        key: Array,
        progress: Progress,
        mesh: Mesh | None,
    ) -> tuple[optax.GradientTransformation, Trace]:
        """The last step of the optimizer's chain: here, no protection."""
        del key, progress, mesh  # for the methods that read or draw images
        free = unprotected(classifier, task.forget.images)
        return project_to_null_space(free), Trace(ranks=subspace_ranks(free))

    def descend(
        self,
        classifier: Classifier,
        task: Task,
        setting: Setting,
        *,
        key: Array,
        progress: Progress = no_progress,
        mesh: Mesh | None = None,
    ) -> Result:
        """The steps themselves, at this method's learning rate."""
        result = unlearn(
            classifier,
            task.forget.images,
            setting.targets,
            self.optimizer(setting.projection),
            steps=self.steps,
            batch_size=self.batch_size,
            key=key,
            augment=augmentation.by_name[self.augment],
            callback=lambda step, _: progress("steps", step + 1, self.steps),
            mesh=mesh,
        )
        trace = dataclasses.replace(
            setting.trace,
            losses=result.trace.losses,
            seconds=_sum(setting.trace.seconds, result.trace.seconds),
            samples_read=_sum(setting.trace.samples_read, result.trace.samples_read),
        )
        return Result(result.classifier, trace)

    def optimizer(
        self, projection: optax.GradientTransformation
    ) -> optax.GradientTransformation:
        """SGD, then the projection."""
        # The rate in the state, not in the program: a grid of rates compiles once.
        sgd = optax.inject_hyperparams(optax.sgd)(
            learning_rate=self.learning_rate, momentum=self.momentum
        )
        return optax.chain(sgd, projection)

    def replace(self, **fields) -> "Descent":
        """A copy with these fields replaced."""
        return dataclasses.replace(self, **fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedDescent(Descent):
    """Descent whose updates keep off the retained layer inputs.

    Attributes:
      projection: "hard" removes the protected subspace, "ridge" shrinks along it by
        `damping / (c + damping)`, "none" protects nothing.
      energy: protects the smallest subspace that holds this share of the trace.
      rank: or so many directions.
      protected_fraction: or this share of all directions.
      rtol: or those above this share of the largest singular value of the rows.
      damping: of the ridge, in units of the moment's trace.
    """

    projection: Literal["hard", "ridge", "none"] = "hard"
    energy: float | None = 0.99
    rank: int | None = None
    protected_fraction: float | None = None
    rtol: float | None = None
    damping: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if self.projection not in ("hard", "ridge", "none"):
            msg = f'projection must be "hard", "ridge" or "none"; it is {self.projection!r}.'  # noqa: E501
            raise ValueError(msg)
        given = {name: value for name, value in self.rule.items() if value is not None}
        if self.projection == "hard" and len(given) != 1:
            msg = (
                "A hard projection takes exactly one of energy, rank, "
                f"protected_fraction and rtol; given are {given or 'none'}. Set energy="
                "None to use another."
            )
            raise ValueError(msg)
        if self.projection == "hard":
            choose_rule(**self.rule)
        if not (np.isfinite(self.damping) and self.damping > 0):
            msg = f"damping must be positive; it is {self.damping}."
            raise ValueError(msg)

    @property
    def rule(self) -> dict[str, float | None]:
        """The rank rule, as arguments of `subspaces`."""
        names = ("energy", "rank", "protected_fraction", "rtol")
        return {name: getattr(self, name) for name in names}

    def protected(
        self, moments: PyTree, mesh: Mesh | None = None
    ) -> tuple[optax.GradientTransformation, dict]:
        """The projection that these moments of retained inputs ask for, and ranks."""
        if self.projection == "ridge":
            return shrink_to_null_space(moments, damping=self.damping), {}
        rule = self.rule if self.projection == "hard" else {"rank": 0}
        protected = subspaces(moments, **rule, mesh=mesh)
        return project_to_null_space(protected), subspace_ranks(protected)


def new_targets(
    kind: Targets,
    classifier: Classifier,
    task: Task,
    *,
    key: Array,
    mesh: Mesh | None = None,
) -> Array:
    """Labels `[n]` or probabilities `[n, k]` for the forget set; see `Descent`."""
    outputs = None
    if needs_logits(kind):
        outputs = logits(classifier, task.forget.images, mesh=mesh)
    samples = (outputs, task.forget.labels)
    return relabelled(kind, *samples, task.forget_classes, task.num_classes, key=key)


def needs_logits(kind: Targets) -> bool:
    """Whether new labels of this kind are read off the original's logits."""
    return kind not in ("true", "random")


def relabelled(
    kind: Targets,
    outputs: Array | np.ndarray | None,
    labels: Array | np.ndarray,
    classes: tuple[int, ...],
    num_classes: int,
    *,
    key: Array,
) -> Array:
    """New labels of samples, given their logits.

    Args:
      kind: as in `Descent`.
      outputs: the original's logits `[n, k]`, or None where `needs_logits` says so.
      labels: Int[n], as they are.
      classes: forgotten ones; `()` where samples are forgotten.
      num_classes: how many classes there are.
      key: for random labels.
    """
    labels = jnp.asarray(labels)
    if kind == "true":
        return labels
    if kind == "random":
        if classes:
            return random_retained_labels(key, len(labels), num_classes, classes)
        shift = jax.random.randint(key, labels.shape, 1, num_classes)
        return (labels + shift) % num_classes
    outputs = jnp.asarray(outputs)
    if kind == "runner-up" or (kind == "nearest-retained" and not classes):
        return runner_up_labels(outputs, labels, exclude=classes)
    if kind == "nearest-retained":
        return nearest_retained_labels(outputs, classes)
    if classes:
        return retained_probabilities(outputs, classes)
    own = jax.nn.one_hot(labels, outputs.shape[1], dtype=bool)
    return jax.nn.softmax(jnp.where(own, -jnp.inf, outputs))


def unprotected(classifier: Classifier, images: Array | np.ndarray) -> PyTree:
    """Subspaces of rank zero: every weight that has an input may move freely."""

    def free(layout):
        g, d = layout.groups, layout.fan_in
        return Subspace(jnp.zeros((g, d, 0)), jnp.zeros((g, d)), layout)

    return jax.tree.map(free, layouts(classifier, images))


def subspace_ranks(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The rank of each group of each leaf, by the leaf's path."""
    pairs = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: isinstance(x, Subspace)
    )
    return {
        path_name(path): tuple(
            int(n) for n in (np.asarray(s.basis) != 0).any(axis=-2).sum(axis=-1)
        )
        for path, s in pairs
    }


def surviving_gradient(
    classifier: Classifier,
    images: Array | np.ndarray,
    targets: Array,
    projection: optax.GradientTransformation,
) -> dict[str, float]:
    """`|P G|^2 / |G|^2` of the forget gradient G, for each leaf that has an input.

    Near zero it explains why forgetting makes no progress: what is protected fills the
    layer's input space.

    Args:
      classifier: where the gradient is taken.
      images: of the forget set.
      targets: their new labels; further ones are ignored.
      projection: a linear transformation such as `project_to_null_space`.
    """
    targets = targets[: len(images)]
    before = _gradient(classifier, jnp.asarray(images), targets)
    after, _ = projection.update(before, projection.init(classifier.params))
    shares = jax.tree_util.tree_leaves_with_path(jax.device_get(_shares(before, after)))
    movable = subspace_ranks(unprotected(classifier, images))
    named = {path_name(path): float(share) for path, share in shares}
    return {name: share for name, share in named.items() if name in movable}


@jax.jit
def _gradient(classifier, images, targets):
    def loss(params):
        return cross_entropy(classifier.replace(params=params)(images), targets).mean()

    return jax.grad(loss)(classifier.params)


@jax.jit
def _shares(before, after):
    def share(g, p):
        whole = jnp.sum(jnp.square(g))
        return jnp.sum(jnp.square(p)) / jnp.where(whole > 0, whole, 1)

    return jax.tree.map(share, before, after)


def _sum(first, second) -> dict:
    return {
        name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}
    }
