"""Two teachers: the original for retained data, an untrained one for the forget set."""

import dataclasses

import jax
import numpy as np

from jaxunlearn.methods.baseline import Baseline, fresh, retained
from jaxunlearn.methods.random_labels import mean_of_sets
from jaxunlearn.metrics.evaluation import logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadTeacher(Baseline):
    """Learn the original's probabilities on retained, an untrained network's elsewhere.

        KL(l p_untrained + (1 - l) p_original || p),   l = 1 on the forget set, else 0

    Refused are networks that cannot be drawn anew (NNX, `Function`).

    Source: Chundawat et al., arXiv 2205.08096, with SGD in place of Adam.

    >>> BadTeacher().forgets
    True
    """

    def sets(self, classifier, task, key):
        """Both sets with their teachers' probabilities."""
        teachers = {
            "forget": (task.forget, fresh(classifier, task, key, self)),
            "retain": (retained(task, self), classifier),
        }
        return {
            name: (
                data.images,
                np.asarray(jax.nn.softmax(logits(teacher, data.images))),
            )
            for name, (data, teacher) in teachers.items()
        }

    def objective(self):
        """The cross-entropy, whose gradient is that of the divergence."""
        return mean_of_sets
