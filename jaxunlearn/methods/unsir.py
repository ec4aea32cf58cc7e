"""UNSIR: impair with noise that maximises the class's loss, then repair."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.checks import check_count, check_nonnegative
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.methods.baseline import (
    Baseline,
    Phase,
    check_whole_classes,
    labelled,
    minimise,
    retained,
)
from jaxunlearn.methods.fine_tune import FineTune


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNSIR(Baseline):
    """Learn noise that maximises the forgotten classes' loss, train on it, repair.

    1. Noise `N` of each forgotten class `c`: minimise
       `-cross-entropy(f(N), c) + penalty mean |N|**2` by Adam at .1, from N(0, I).
    2. Impair: descend on the noise as samples of `c` beside retained samples.
    3. Repair: descend on retained samples alone, at half the rate.

    The noise is what the network itself is fed, after any `Preprocess`. No sample of
    the forget set is read.

    Attributes:
      noise_steps: of the noise.
      penalty: on its squared norm.
      repair_steps: of the repair; `steps` are those of the impairing.

    Source: Tarun et al., arXiv 2111.08947. All three descend by Adam as there, in 2 and
    3 with `momentum` as its first decay: losses on the noise are too large for SGD.

    >>> UNSIR().noise_steps, UNSIR().penalty
    (40, 0.1)
    """

    learning_rate: float = 0.02
    noise_steps: int = 40
    penalty: float = 0.1
    repair_steps: int = 100

    classwise: ClassVar[str] = "learns noise of whole classes"

    def __post_init__(self):
        super().__post_init__()
        check_count("noise_steps", self.noise_steps)
        check_count("repair_steps", self.repair_steps)
        check_nonnegative("penalty", self.penalty)

    def sets(self, classifier, task, key):
        """The noise, a minibatch of it for each class, and retained samples."""
        check_whole_classes(task, self)
        labels = np.repeat(np.int32(task.forget_classes), self.batch_size)
        noise = self.noise(classifier, labels, task.forget.images.shape[1:], key)
        return {
            "noise": (noise, labels),
            "retain": labelled(retained(task, self)),
        }

    def optimizer(self, constants):
        """Adam, whose rate is in its state."""
        del constants
        adam = optax.inject_hyperparams(optax.adam)(
            learning_rate=self.learning_rate, b1=self.momentum
        )
        if not self.weight_decay:
            return adam
        return optax.chain(optax.add_decayed_weights(self.weight_decay), adam)

    def noise(self, classifier: Classifier, labels, image_shape, key):
        """Inputs of the network that maximise the loss of these labels."""
        draw, key = jax.random.split(key)
        start = jax.random.normal(draw, (len(labels), *image_shape))
        noise, _ = minimise(
            classifier.replace(params=start),
            {},
            _Penalised(self.penalty),
            optax.adam(0.1),
            steps=self.noise_steps,
            batch_size=self.batch_size,
            key=key,
            draw=key,
            constants=(classifier, jnp.asarray(labels)),
        )
        return noise

    def phases(self, sets, constants):
        """Impair and repair."""
        half = self.replace(learning_rate=self.learning_rate / 2)
        last = FineTune().objective(), half.optimizer(constants), self.repair_steps
        return [
            Phase(_impair, self.optimizer(constants), self.steps, ("noise", "retain")),
            Phase(*last, ("retain",)),
        ]


@dataclasses.dataclass(frozen=True)
class _Penalised:
    penalty: float

    def __call__(self, constants, noise, rows, key):
        del rows, key
        (classifier, labels), inputs = constants, noise.params
        squares = jnp.square(inputs).sum(axis=(1, 2, 3)).mean()
        losses = cross_entropy(classifier.logits(inputs), labels)
        return self.penalty * squares - losses.mean()


def _impair(constants, classifier, rows, key):
    """The cross-entropy over noise and retained samples."""
    del constants, key
    (noise, wrong), (images, labels) = rows["noise"], rows["retain"]
    outputs = classifier.logits(noise), classifier(images)
    losses = map(cross_entropy, outputs, (wrong, labels))
    return jnp.concatenate(list(losses)).mean()
