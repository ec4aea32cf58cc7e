"""What the commands that train have in common besides data set and network."""

import dataclasses

import numpy as np

from jaxunlearn.cli.source import Source, check_seed
from jaxunlearn.models.files import Card
from jaxunlearn.tasks import Data
from jaxunlearn.training.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(Source):
    """A data set, a network and how to train it.

    Attributes:
      seed: of everything drawn.
      split_seed: which samples are for validation; by default --seed.
      recipe: how the classifier is trained.
    """

    seed: int = 0
    split_seed: int | None = None
    recipe: Recipe = Recipe()

    @property
    def validation_seed(self) -> int:
        """Which samples are for validation."""
        return self.seed if self.split_seed is None else self.split_seed

    def check(self) -> None:
        """Check what can be checked before any data are read.

        Raises:
          TypeError: the network has no such option.
          ValueError: names, numbers or a seed are not what they can be.
        """
        super().check()
        check_seed(self.seed)
        check_seed(self.validation_seed, "--split-seed")

    def card(self, name: str, image_shape, forgotten) -> Card:
        """What a saved classifier says about itself."""
        return Card(
            name=name,
            model=self.model,
            num_classes=self.num_classes(),
            options=self.model_options(),
            image_shape=tuple(image_shape),
            dataset=self.dataset,
            size=self.size,
            split_seed=self.validation_seed,
            forgotten=tuple(forgotten),
        )


def of_classes(data: Data, labels: np.ndarray) -> Data:
    """The samples whose class is among `labels`."""
    kept = np.isin(data.labels, labels)
    return Data(data.images[kept], data.labels[kept])
