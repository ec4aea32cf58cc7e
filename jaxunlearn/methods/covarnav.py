"""CovarNav: forget without any retained data."""

import dataclasses
from typing import Literal

import jax
import numpy as np

from jaxunlearn.checks import check_choice, check_count
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.inversion import ImageAdam, ImagePrior, invert
from jaxunlearn.inversion.step import ScheduleName
from jaxunlearn.methods.descent import ProjectedDescent, Targets
from jaxunlearn.methods.statistics import PooledMoments, Statistics
from jaxunlearn.metrics.proxies import noise_images
from jaxunlearn.progress import Progress
from jaxunlearn.tasks import Data, Task

StandIn = Literal["inverted", "retained", "uniform", "gaussian", "matched"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CovarNav(ProjectedDescent):
    """Covariance navigation: images inverted from the model stand in for retained data.

    1. Invert the model into images of the retained classes.
    2. Mislabel the forget set with its runner-up class.
    3. Descend on those labels; every update keeps off the inverted images' inputs of
       each layer.

    No retained sample is read, unless `stand_in` says so. What the paper leaves open
    (inversion weights, rank rule, optimizer, steps) is chosen here and listed below.

    Attributes:
      learning_rate: the learning rate of SGD: at .2 the default number of steps forgets
        a class of the digits and of CIFAR-10, on validation data, and Fashion-MNIST
        does between .1 and .3 (`benchmarks/cifar_defaults.md`).
      images_per_class: inverted images of each retained class.
      inversion_steps: steps of the inversion.
      inversion_batch_size: images optimised together.
      inversion_rate: Adam's learning rate, in units of the bounds' width.
      inversion_schedule: of that rate: "cosine", "multi-step" or "constant".
      prior: weights of the terms of the inversion.
      jitter: rolls by up to so many pixels, capped at `side // 16`.
      stand_in: what stands in for retained data. "inverted" is the method; the others
        tell how good that is: "retained" are equally many true images of each class,
        the ceiling, for which retained data are read; "uniform", "gaussian" and
        "matched" are noise, the floor (`jaxunlearn.noise_images`).

    Source: arXiv 2311.12999.

    >>> CovarNav(energy=0.95).targets
    'runner-up'
    """

    learning_rate: float = 0.2
    targets: Targets = "runner-up"
    images_per_class: int = 32
    inversion_steps: int = 500
    inversion_batch_size: int = 256
    inversion_rate: float = 0.1
    inversion_schedule: ScheduleName = "cosine"
    prior: ImagePrior = ImagePrior()
    jitter: int = 2
    stand_in: StandIn = "inverted"

    def reads(self, retained: int, classes: int) -> dict[str, int]:
        """See `Descent.reads`: moments of the proxies, which are inverted."""
        del retained
        images = classes * self.images_per_class
        inverted = images if self.stand_in == "inverted" else 0
        return {"images": images, "inverted": inverted}

    def __post_init__(self):
        super().__post_init__()
        for name in ("images_per_class", "inversion_steps", "inversion_batch_size"):
            check_count(name, getattr(self, name))
        if self.jitter < 0:
            msg = f"jitter must be 0 or more pixels; it is {self.jitter}."
            raise ValueError(msg)
        check_choice("stand_in", self.stand_in, StandIn.__args__)
        for name in ("moment", "competition"):
            if getattr(self.prior, name):
                msg = (
                    f"prior.{name} compares images with what this method does not "
                    "have (moments, a student), so that it cannot have a weight: leave "
                    "it out."
                )
                raise ValueError(msg)
        self.image_adam()

    def image_adam(self) -> ImageAdam:
        """The optimizer of the inversion."""
        return ImageAdam(self.inversion_rate, self.inversion_schedule)

    def statistics(
        self, classifier, task, *, key, mesh=None, progress=None, requests=None
    ) -> Statistics:
        """Moments of images that stand in for retained ones.

        They are of every class where there are several requests, each of which leaves
        out those of its own classes: unlike by itself, where the others are optimised
        without them.
        """
        given = {"key": key, "mesh": mesh, "progress": progress}
        if self.projection == "none":
            return super().statistics(classifier, task, **given, requests=requests)
        watch = Stopwatch()
        with watch.stage("inversion"):
            proxies = self.proxies(classifier, task, **given)
        with watch.stage("statistics"):
            data = classifier, proxies, task.num_classes, requests
            without = PooledMoments(*data, mesh=mesh, progress=progress)
        return Statistics(
            without,
            without.passes,
            samples_read=len(proxies) if self.stand_in == "retained" else 0,
            proxies=proxies,
            seconds=watch.seconds,
            mesh=mesh,
        )

    def proxies(
        self, classifier, task: Task, *, key, progress: Progress = None, mesh=None
    ) -> Data:
        """Images that stand in for the retained classes, in pixel space.

        Raises:
          ValueError: `stand_in` asks for retained data and there are none, or for noise
            and there is no `Preprocess` that says what pixels are.
        """
        retained = [c for c in range(task.num_classes) if c not in task.forget_classes]
        labels = np.tile(np.array(retained, np.int32), self.images_per_class)
        if self.stand_in == "inverted":
            made = self._inverted(classifier, task, labels, key, progress, mesh)
            return Data(made, labels)
        if self.stand_in == "retained":
            return _drawn(task, retained, self.images_per_class, key)
        if classifier.preprocess is None:
            msg = (
                f'stand_in "{self.stand_in}" draws pixels in [0, 1], which a '
                "classifier without a Preprocess does not take: freeze it with one."
            )
            raise ValueError(msg)
        shape = task.forget.images.shape[1:]
        pixels = classifier.preprocess
        return Data(
            noise_images(key, self.stand_in, len(labels), shape, pixels), labels
        )

    def _inverted(self, classifier, task, labels, key, progress, mesh):
        images = task.forget.images
        bounds = None
        if classifier.preprocess is None:
            bounds = (float(images.min()), float(images.max()))
        return invert(
            classifier,
            labels,
            image_shape=images.shape[1:],
            key=key,
            prior=self.prior,
            steps=self.inversion_steps,
            optimizer=self.image_adam(),
            jitter=self.jitter,
            bounds=bounds,
            batch_size=self.inversion_batch_size,
            mesh=mesh,
            progress=progress,
        )


def _drawn(task: Task, classes: list[int], count: int, key) -> Data:
    """So many retained images of each class (fewer where there are not as many)."""
    if task.retain is None:
        msg = 'stand_in "retained" reads retained data, and task.retain is None.'
        raise ValueError(msg)
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    order = np.random.default_rng(seed).permutation(len(task.retain))
    rows = [order[task.retain.labels[order] == c][:count] for c in classes]
    chosen = np.concatenate(rows)
    return Data(task.retain.images[chosen], task.retain.labels[chosen])
