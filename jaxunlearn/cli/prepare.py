"""`jaxunlearn prepare`: bring a data set into the form that is read."""

import dataclasses
from typing import Annotated

from jaxunlearn import datasets
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.flags import Command
from jaxunlearn.cli.settings import Folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare(Command):
    """Download a data set and bring it into the form that the other commands read.

    Attributes:
      name: of an image set of TFDS, such as cifar10.
      data_dir: where to put it; by default $TFDS_DATA_DIR, or TFDS's own folder.
    """

    examples = (
        "jaxunlearn prepare cifar10",
        "jaxunlearn prepare fashion_mnist --data-dir data",
    )
    positional = "name"
    compiles = False

    name: Annotated[str, "NAME"]
    data_dir: Folder = None

    def run(self) -> None:
        """Download and prepare it, and say where it lies."""
        place = datasets.prepare(self.name, self.data_dir)
        consoles()[0].print(f"{self.name} lies in {place}.")
