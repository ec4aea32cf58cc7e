"""SCRUB: disobey the original on the forget set, obey it on retained data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.checks import check_count, check_nonnegative, check_positive
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.methods.baseline import Baseline, Phase, retained
from jaxunlearn.metrics.evaluation import logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class SCRUB(Baseline):
    """Alternate: diverge from the original on the forget set, stay near it elsewhere.

        max over forget samples:    KL_T(teacher || student)
        min over retained samples:  alpha KL_T(teacher || student) + gamma cross-entropy
        KL_T = T**2 KL(softmax(z_teacher / T) || softmax(z_student / T))

    The teacher is the original. `steps` minimising minibatches are spread over the
    rounds; each of the first `ascents` rounds begins with one pass over the forget set.

    Attributes:
      alpha: the weight of the divergence on retained data.
      gamma: the weight of the cross-entropy there.
      temperature: T.
      rounds: how often retained data have their turn.
      ascents: how many rounds begin with the forget set.

    Source: Kurmanji et al., arXiv 2302.09880. Momentum starts anew at each turn, and
    the rate stays as it is.

    >>> SCRUB().gamma, SCRUB().alpha
    (0.99, 0.001)
    """

    learning_rate: float = 5e-4
    weight_decay: float = 5e-4
    alpha: float = 0.001
    gamma: float = 0.99
    temperature: float = 4.0
    rounds: int = 5
    ascents: int = 3

    def __post_init__(self):
        super().__post_init__()
        check_nonnegative("alpha", self.alpha)
        check_nonnegative("gamma", self.gamma)
        check_positive("temperature", self.temperature)
        check_count("rounds", self.rounds)
        check_count("ascents", self.ascents)
        if not self.ascents <= self.rounds <= self.steps:
            msg = (
                "ascents must be at most rounds, and rounds at most steps; they are "
                f"{self.ascents}, {self.rounds} and {self.steps}."
            )
            raise ValueError(msg)

    def sets(self, classifier, task, key):
        """Both sets with their labels and the teacher's logits."""
        del key
        sets = {"forget": task.forget, "retain": retained(task, self)}
        return {
            name: (data.images, (data.labels, logits(classifier, data.images)))
            for name, data in sets.items()
        }

    def phases(self, sets, constants):
        """A pass over the forget set, steps on the retain set, and again."""
        optimizer = self.optimizer(constants)
        forget = -(-len(sets["forget"][0]) // self.batch_size)
        up, down = _Diverge(self.temperature), self.objective()
        phases = []
        for number, part in enumerate(np.array_split(range(self.steps), self.rounds)):
            if number < self.ascents:
                phases.append(Phase(up, optimizer, forget, ("forget",)))
            phases.append(Phase(down, optimizer, len(part), ("retain",)))
        return phases

    def objective(self):
        """What is minimised on retained data."""
        return _Obey(self.alpha, self.gamma, self.temperature)


def divergence(teacher, student, temperature):
    """Mean of `T**2 KL(softmax(teacher / T) || softmax(student / T))`."""
    p, log_p, log_q = (
        function(z / temperature)
        for function, z in (
            (jax.nn.softmax, teacher),
            (jax.nn.log_softmax, teacher),
            (jax.nn.log_softmax, student),
        )
    )
    return temperature**2 * (p * (log_p - log_q)).sum(axis=1).mean()


@dataclasses.dataclass(frozen=True)
class _Diverge:
    temperature: float

    def __call__(self, constants, classifier, rows, key):
        del constants, key
        images, (_, teacher) = rows["forget"]
        return -divergence(teacher, classifier(images), self.temperature)


@dataclasses.dataclass(frozen=True)
class _Obey:
    alpha: float
    gamma: float
    temperature: float

    def __call__(self, constants, classifier, rows, key):
        del constants, key
        images, (labels, teacher) = rows["retain"]
        student = classifier(images)
        near = divergence(teacher, student, self.temperature)
        right = cross_entropy(student, jnp.asarray(labels)).mean()
        return self.alpha * near + self.gamma * right
