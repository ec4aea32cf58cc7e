"""Measurements of studies by name, over training seeds, as tables."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from jaxunlearn.cli.cells import Cell, Cells
from jaxunlearn.cli.compare import Compare
from jaxunlearn.cli.comparison import (
    COLUMNS,
    Column,
    Measure,
    Summary,
    spent,
    summarise,
)
from jaxunlearn.cli.console import Bars
from jaxunlearn.cli.later import told
from jaxunlearn.cli.samples import Forgotten
from jaxunlearn.cli.settings import keys
from jaxunlearn.cli.variants import variants
from jaxunlearn.serialization import to_dict
from jaxunlearn.studies.given import Given, Rows
from jaxunlearn.studies.poisoned import poisoned
from jaxunlearn.studies.request_cost import request_cost
from jaxunlearn.studies.sample_size import sample_size
from jaxunlearn.tasks import Data

# Of the ways to report a measure of `COLUMNS` these two are taken as they are.
_ACCURACIES = {n: COLUMNS[n] for n in ("accuracy/forgotten", "accuracy/retained")}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A row of `MEASUREMENTS`.

    Attributes:
      function: `(given, **arguments) -> Rows`.
      columns: what it reports, in this order.
    """

    function: Callable[..., Rows]
    columns: Mapping[str, Column]


MEASUREMENTS: dict[str, Measurement] = {
    "sample-size": Measurement(
        sample_size,
        {
            **_ACCURACIES,
            "rank": Column("rank", ".1f", "of the subspace, mean over layers"),
            "captured_energy": Column(
                "energy", ".4f", "share of all retained inputs' that it holds"
            ),
            "overlap": Column(
                "overlap", ".3f", "share of the smaller subspace in that of all"
            ),
        },
    ),
    "request-cost": Measurement(
        request_cost,
        {
            **_ACCURACIES,
            "seconds": Column("s", ".1f", "of all requests, without compilation"),
            "seconds_each": Column("s each", ".2f", "of a request"),
            "read": Column("read", ".0f", "retained samples, repeats included"),
        },
    ),
    "poisoned": Measurement(
        poisoned,
        {
            **_ACCURACIES,
            "victim": Column("victim", ".1f", "test accuracy of the victim class, %"),
            "triggered": Column(
                "square", ".1f", "Acc_r with the backdoor's square in the image"
            ),
            "drift": Column("drift", ".3f", "relative, of layers on retained inputs"),
        },
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A measurement that a study asks for.

    Attributes:
      measurement: a name of `MEASUREMENTS`.
      command: flags of `jaxunlearn compare`: data, network, methods, seeds, what is
        forgotten.
      arguments: the measurement's own.
    """

    measurement: str
    command: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def measure(
    asked: Measured, settings: Compare, shown: Bars
) -> dict[str, dict[str, Summary]]:
    """Means over the training seeds, by row and measure; of each seed kept."""
    splits = settings.load_splits()
    cells, (forgotten,) = Cells(settings, splits, shown), settings.requests(splits)
    methods = {
        v.title: (v.method, v.grid) for v in variants(settings, settings.methods)
    }
    by_seed: dict[str, list[list[dict[str, Measure]]]] = {}
    for seed in settings.seeds:
        original = cells.original(seed)
        given = _given(settings, cells, splits, original, forgotten, methods, seed)
        configuration = {
            "original": original.digest,
            "measurement": asked.measurement,
            "arguments": asked.arguments,
            "forget": forgotten.classes,
            "methods": {
                t: [told(to_dict(m)), grid] for t, (m, grid) in methods.items()
            },
            "seed": seed,
        }
        found = cells.measured(configuration, functools.partial(_rows, asked, given))
        for row, values in found["rows"].items():
            numbers = {name: Measure(value) for name, value in values.items()}
            by_seed.setdefault(row, []).append([numbers])
    return {row: summarise(seeds) for row, seeds in by_seed.items()}


def _rows(asked: Measured, given: Callable[[], Given]) -> Rows:
    return MEASUREMENTS[asked.measurement].function(given(), **asked.arguments)


def _given(
    settings: Compare,
    cells: Cells,
    splits: Mapping[str, Data],
    original: Cell,
    forgotten: Forgotten,
    methods: dict[str, tuple[Any, tuple[float, ...]]],
    seed: int,
) -> Callable[[], Given]:
    """Read when it is needed: a measurement that is there needs no classifier."""
    record = original.record
    return lambda: Given(
        cells.load(original),
        **splits,
        classes=forgotten.classes,
        num_classes=settings.num_classes(),
        methods=methods,
        key=keys(seed)[1],
        training_seconds=spent(record["seconds"]),
        training_samples=record["samples_read"]["retain"],
    )
