"""The control: the same labels and weights, no projection."""

import dataclasses

from jaxunlearn.methods.descent import Descent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unprojected(Descent):
    """Descend on new labels with the weights that the projected methods may move.

    Biases and normalisation stay as they are, as in the projected methods, so that the
    projection is the only difference.

    >>> Unprojected(learning_rate=0.01).steps
    100
    """
