"""`jaxunlearn prepare`: bring a data set into the form that is read."""

from jaxunlearn import datasets
from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.settings import Prepare


def prepare_data_set(settings: Prepare) -> None:
    """Download and prepare a set of TFDS, and say where it lies."""
    folder = None if settings.data_dir is None else str(settings.data_dir)
    place = datasets.prepare(settings.name, folder)
    results, _ = consoles()
    results.print(f"{settings.name} lies in {place}.")
