"""How much is computed for a page, which is to take seconds."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What is looked at.

    Attributes:
      samples: the most training and test samples that measures read.
      points: the most samples in a map of features.
      map: how features become two numbers: t-SNE keeps neighbours, PCA distances.
      relearn_steps: the most minibatches of relearning; None is 150, and fewer or none
        where the network is so large that they would take minutes.
    """

    samples: int = 2000
    points: int = 400
    map: Literal["tsne", "pca"] = "tsne"
    relearn_steps: int | None = None
