"""CovarNav: forget without any retained data."""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from jaxunlearn.checks import check_choice, check_count
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.stopwatch import Stopwatch
from jaxunlearn.inversion import ImageAdam, ImagePrior, augmented_images, invert
from jaxunlearn.inversion.start import has_batch_norm
from jaxunlearn.inversion.step import ScheduleName
from jaxunlearn.methods.descent import ProjectedDescent, Targets
from jaxunlearn.methods.statistics import PooledMoments, Statistics
from jaxunlearn.metrics.proxies import noise_images
from jaxunlearn.progress import Progress
from jaxunlearn.tasks import Data, Task

StandIn = Literal["inverted", "augmented", "retained", "uniform", "gaussian", "matched"]
Start = Literal["auto", "noise", "forget"]

# Adam's rate by what an inversion starts from: real images are to stay near.
RATES = {"noise": ImageAdam.learning_rate, "forget": 0.01}


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
      start: what the inversion starts from. "noise", or "forget": the forget images,
        shifted, flipped and made darker or brighter (`jaxunlearn.augmented_images`).
        "auto" is "noise" where the network has BatchNorm, whose statistics images can
        match, and "forget" where it has none and noise would remain noise to all but
        the last layers (`benchmarks/inversion.md`). Several requests share their
        images, which start from noise: the one's forget images are retained images of
        the other.
      inversion_rate: Adam's learning rate, in units of the bounds' width. By default .1
        from noise and .01 from the forget images.
      inversion_schedule: of that rate: "cosine", "multi-step" or "constant".
      prior: weights of the terms of the inversion.
      jitter: rolls by up to so many pixels, capped at `side // 16`.
      stand_in: what stands in for retained data. "inverted" is the method; the others
        tell how good that is: "retained" are equally many true images of each class,
        the ceiling, for which retained data are read; "augmented" are the forget images
        that "forget" starts from, as they are, a floor; "uniform", "gaussian" and
        "matched" are noise, the other floor (`jaxunlearn.noise_images`).

    Source: arXiv 2311.12999.

    >>> CovarNav(energy=0.95).targets
    'runner-up'
    """

    learning_rate: float = 0.2
    targets: Targets = "runner-up"
    images_per_class: int = 32
    inversion_steps: int = 500
    inversion_batch_size: int = 256
    start: Start = "auto"
    inversion_rate: float | None = None
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
        check_choice("start", self.start, Start.__args__)
        for name in ("moment", "competition"):
            if getattr(self.prior, name):
                msg = (
                    f"prior.{name} compares images with what this method does not "
                    "have (moments, a student), so that it cannot have a weight: leave "
                    "it out."
                )
                raise ValueError(msg)
        self.image_adam("noise")

    @property
    def reads_retained(self) -> bool:
        """See `Descent.reads_retained`: where true images are to stand in."""
        return self.stand_in == "retained" and self.projection != "none"

    def image_adam(self, start: str) -> ImageAdam:
        """The optimizer of an inversion from "noise" or "forget"."""
        given = self.inversion_rate
        rate = RATES[start] if given is None else given
        return ImageAdam(rate, self.inversion_schedule)

    def start_of(self, classifier: Classifier, image_shape: tuple[int, ...]) -> str:
        """From "noise" or "forget", where "auto" is looked up in the network."""
        if self.start != "auto":
            return self.start
        return "noise" if has_batch_norm(classifier, image_shape) else "forget"

    def statistics(
        self, classifier, task, *, key, mesh=None, progress=None, requests=None
    ) -> Statistics:
        """Moments of images that stand in for retained ones.

        They are of every class where there are several requests, each of which leaves
        out those of its own classes: unlike by itself, where the others are optimised
        without them.

        Raises:
          ValueError: `start` is "forget" and there are several requests.
        """
        given = {"key": key, "mesh": mesh, "progress": progress}
        if self.projection == "none":
            return super().statistics(classifier, task, **given, requests=requests)
        method = self if requests is None else self._shared()
        watch = Stopwatch()
        with watch.stage("inversion"):
            proxies = method.proxies(classifier, task, **given)
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

    def _shared(self) -> "CovarNav":
        """For several requests at once, of which none may see another's images."""
        forget_images = {"start": self.start == "forget"}
        forget_images["stand_in"] = self.stand_in == "augmented"
        for name in [name for name, seen in forget_images.items() if seen]:
            msg = (
                f'{name} is "{getattr(self, name)}" and there are several requests, '
                "which share their proxies: one's forget images are retained images of "
                'another. Forget one after the other, or take start="noise".'
            )
            raise ValueError(msg)
        return dataclasses.replace(self, start="noise")

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
        if self.stand_in == "augmented":
            return Data(_augmented(classifier, task, len(labels), key), labels)
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
        shape = task.forget.images.shape[1:]
        start = self.start_of(classifier, shape)
        real = start == "forget"
        return invert(
            classifier,
            labels,
            image_shape=shape,
            key=key,
            prior=self.prior,
            steps=self.inversion_steps,
            optimizer=self.image_adam(start),
            jitter=self.jitter,
            bounds=_bounds(classifier, task),
            start=_augmented(classifier, task, len(labels), key) if real else None,
            batch_size=self.inversion_batch_size,
            mesh=mesh,
            progress=progress,
        )


def _bounds(classifier, task) -> tuple[float, float] | None:
    """The range of the forget images where nothing else says what pixels are."""
    images = task.forget.images
    if classifier.preprocess is not None:
        return None
    return float(images.min()), float(images.max())


def _augmented(classifier, task, count, key) -> Any:
    """So many images out of those to forget."""
    key, bounds = jax.random.fold_in(key, 1), _bounds(classifier, task)
    return augmented_images(
        classifier, task.forget.images, count, key=key, bounds=bounds
    )


def _drawn(task: Task, classes: list[int], count: int, key) -> Data:
    """So many retained images of each class (fewer where there are not as many)."""
    if task.retain is None:
        msg = 'stand_in "retained" reads retained data, and task.retain is None.'
        raise ValueError(msg)
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    order = np.random.default_rng(seed).permutation(len(task.retain))
    rows = [order[task.retain.labels[order] == c][:count] for c in classes]
    return task.retain.take(np.concatenate(rows))
