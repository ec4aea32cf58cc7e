"""CovarNav: forget without any retained data."""

import dataclasses

import jax
import numpy as np

from jaxunlearn.checks import check_count
from jaxunlearn.inversion import ImagePrior, invert
from jaxunlearn.methods.descent import ProjectedDescent, Targets, no_progress
from jaxunlearn.moments import second_moments
from jaxunlearn.stopwatch import Stopwatch
from jaxunlearn.tasks import Data, Task
from jaxunlearn.unlearning import Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class CovarNav(ProjectedDescent):
    """Covariance navigation: images inverted from the model stand in for retained data.

    1. Invert the model into images of the retained classes.
    2. Mislabel the forget set with its runner-up class.
    3. Descend on those labels; every update keeps off the inverted images' inputs of
       each layer.

    No retained sample is read. What the paper leaves open (inversion weights, rank
    rule, optimizer, steps) is chosen here and listed below.

    Attributes:
      images_per_class: inverted images of each retained class.
      inversion_steps: steps of the inversion.
      inversion_batch_size: images optimised together.
      prior: weights of the terms of the inversion.
      jitter: rolls by up to so many pixels, capped at `side // 16`.
      flip: mirrors at random.

    Source: arXiv 2311.12999.

    >>> CovarNav(energy=0.95).targets
    'runner-up'
    """

    targets: Targets = "runner-up"
    images_per_class: int = 32
    inversion_steps: int = 500
    inversion_batch_size: int = 256
    prior: ImagePrior = ImagePrior()
    jitter: int = 2
    flip: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("images_per_class", "inversion_steps", "inversion_batch_size"):
            check_count(name, getattr(self, name))
        if self.jitter < 0:
            msg = f"jitter must be 0 or more pixels; it is {self.jitter}."
            raise ValueError(msg)

    def protect(self, classifier, task: Task, *, key, progress):
        """Invert, take second moments, choose what to protect."""
        watch = Stopwatch()
        with watch.stage("inversion"):
            proxies = self.proxies(classifier, task, key=key, progress=progress)
        with watch.stage("statistics"):
            moments = second_moments(classifier, proxies.images)
            projection, ranks = self.protected(moments)
            jax.block_until_ready(moments)
        trace = Trace(ranks=ranks, proxies=proxies, seconds=watch.seconds)
        return projection, trace

    def proxies(self, classifier, task: Task, *, key, progress=no_progress) -> Data:
        """Inverted images of the retained classes, in pixel space."""
        retained = [c for c in range(task.num_classes) if c not in task.forget_classes]
        labels = np.tile(np.array(retained, np.int32), self.images_per_class)
        images = task.forget.images
        bounds = None
        if classifier.preprocess is None:
            bounds = (float(images.min()), float(images.max()))
        batches = -(-len(labels) // self.inversion_batch_size)
        total = batches * self.inversion_steps
        found = invert(
            classifier,
            labels,
            image_shape=images.shape[1:],
            key=key,
            prior=self.prior,
            steps=self.inversion_steps,
            jitter=self.jitter,
            flip=self.flip,
            bounds=bounds,
            batch_size=self.inversion_batch_size,
            callback=lambda step, _: progress("inversion", step, total),
        )
        return Data(found, labels)
