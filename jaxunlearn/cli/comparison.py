"""What a comparison comes to: means over training seeds, and gaps to retraining."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.metrics.gaps import t_interval, tow
from jaxunlearn.metrics.verdict import AuditRow, verdict_of_rows

# Measures of what features still hold: without them an audit sees only answers.
INNER = ("probe", "class-mean", "relearn")

# What is timed, but no cost of the method at its final setting.
_APART = ("compile", "rates")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table of results.

    Attributes:
      heading: what stands above it.
      form: of its numbers, as `format` takes it.
      legend: what it is, with its unit.
    """

    heading: str
    form: str
    legend: str


# The measures that tables show, in this order, where there are any.
COLUMNS: dict[str, Column] = {
    "accuracy/forgotten": Column("Acc_f", ".1f", "test accuracy, forgotten classes, %"),
    "accuracy/samples": Column("forget", ".1f", "accuracy on the forgotten samples, %"),
    "accuracy/retained": Column("Acc_r", ".1f", "test accuracy, retained classes, %"),
    "rarest": Column(
        "rarest", ".1f", "test accuracy, retained classes of fewest training samples, %"
    ),
    "probe": Column("probe", ".1f", "recall of a linear probe, forgotten classes, %"),
    "class-mean": Column("mean", ".1f", "recall of the nearest class mean, %"),
    "prototype": Column("proto", ".1f", "harmonic accuracy after that attack, %"),
    "relearn": Column("relearn", ".0f", "minibatches until the class is back"),
    "retain-relearn": Column(
        "relearn_r", ".0f", "minibatches of retained data until the class is back"
    ),
    "anamnesis": Column("AIN", ".2f", "relearn over that of the retrained model"),
    "neighbour": Column("neighb", ".2f", "AUC of telling it from a retrained model"),
    "membership": Column("member", ".2f", "AUC of membership of forgotten samples"),
    "distribution/labels-forgotten": Column(
        "labels", ".2f", "total variation of predicted labels to the retrained"
    ),
    "distribution/js-forgotten": Column("JS", ".3f", "JS divergence to it, nats"),
    "shifted/forgotten": Column(
        "shift_f", ".1f", "accuracy under shift, forgotten classes, %"
    ),
    "shifted/retained": Column(
        "shift_r", ".1f", "accuracy under shift, retained classes, %"
    ),
    "attacked/forgotten": Column(
        "PGD_f", ".1f", "forgotten samples that PGD brings back, %"
    ),
    "attacked/pgd-retained": Column(
        "PGD_r", ".1f", "accuracy under PGD, retained classes, %"
    ),
    "revival": Column("back", ".1f", "points an earlier class rose by later requests"),
    "captured_energy": Column(
        "energy", ".3f", "share of the retained inputs' that proxies capture, by layer"
    ),
    "retained_logit_change": Column(
        "change", ".2f", "of retained test logits, relative to the original's"
    ),
    "drift": Column("drift", ".3f", "of layers on retained inputs, relative"),
    "loss-change": Column("dL", ".3f", "change of the retained training loss, nats"),
    "loss-change/first-order": Column("dL 1st", ".3f", "what its gradient says"),
    "loss-change/second-order": Column("dL 2nd", ".3f", "what its curvature adds"),
    "tow": Column("ToW", ".3f", "tug of war on forget, retain and test accuracy"),
    "multiply_adds": Column(
        "MACs", ".2f", "multiply-adds as a share of retraining's, where counted"
    ),
    "share": Column("cost", ".2f", "seconds as a share of retraining's"),
}


class Place(NamedTuple):
    """Of a training seed among all `count` of a comparison."""

    index: int
    count: int


class Measure(NamedTuple):
    """One number of one model: its value, and what it is judged by.

    Attributes:
      value: of the model.
      target: that of the model retrained from the same training seed, NaN without.
      floor: the noise of retraining, NaN where it is not known.
      bound: ">" of a bound from below, "<" of one from above, else "".
    """

    value: float
    target: float = math.nan
    floor: float = math.nan
    bound: str = ""


@dataclasses.dataclass(frozen=True)
class Summary:
    """A measure of a row over training seeds.

    Attributes:
      mean, half_width: of its values, with a 95 % t-interval.
      gap, gap_half_width: of its differences to the model retrained from the same seed;
        None where it has no target.
      floor: the mean of the noise floors, None where there are none.
      within: |gap| <= floor, or None.
      seeds: how many there are.
      bound: ">" or "<" where any value is a bound from below or above.
    """

    mean: float
    half_width: float
    gap: float | None
    gap_half_width: float | None
    floor: float | None
    within: bool | None
    seeds: int
    bound: str

    def text(self, form: str, plus_minus: str = "±") -> str:
        """Mean and interval, as in 64.5 ± 1.2."""
        width = ""
        if not math.isnan(self.half_width):
            width = f"{plus_minus}{format(self.half_width, form)}"
        return f"{self.bound}{format(self.mean, form)}{width}"

    def against(self, form: str) -> str:
        """The gap with its sign, or "=" where it is within the noise of retraining."""
        if self.gap is None or math.isnan(self.gap):
            return ""
        return "=" if self.within else format(self.gap, f"+{form}")


Record = Mapping[str, Any]
Measures = Mapping[str, Measure]


def measures_of_audit(
    record: Record, audit: Record, retrained: Record, place: Place
) -> dict[str, Measure]:
    """All numbers of an unlearned model.

    Of its record and audit, and of the record of the model retrained from the same
    training seed, whose place among the audit's retrained models this is.
    """
    measures = {}
    for row in audit["rows"]:
        value, (target, _) = _number(row["unlearned"]), _retrained(row, place)
        bound = ">" * row["censored"][0]
        measures[row["name"]] = Measure(value, target, _number(row["floor"]), bound)
    measures |= _anamnesis(audit, 0, "unlearned", place)
    near = tow(*(_accuracies(r) for r in (record, retrained)))
    measures |= costs(record, retrained) | {"tow": Measure(near)}
    if energies := record.get("captured_energy"):
        measures["captured_energy"] = Measure(float(np.mean([*energies.values()])))
    if "in_turn" in record:
        measures["revival"] = Measure(revival(record["in_turn"]))
    return measures


def measures_of_reference(
    audit: Record, which: str, place: Place
) -> dict[str, Measure]:
    """Of "original" or "retrained" what an audit says, in this place of several."""
    measures = {}
    for row in audit["rows"]:
        target, bound = _retrained(row, place)
        if which == "retrained":
            measures[row["name"]] = Measure(target, bound=bound)
        else:
            given = _number(row[which]), target, _number(row["floor"])
            measures[row["name"]] = Measure(*given, ">" * row["censored"][1])
    if which == "original":
        measures |= _anamnesis(audit, 1, which, place)
    return measures


def revival(in_turn: Sequence[Record]) -> float:
    """How far classes came back by the requests after their own, in points.

    The largest rise of an earlier class's test accuracy (%) from right after it was
    forgotten to the end; negative if all fell further.

    >>> after = [{"forgotten": {"3": 1.0}}, {"forgotten": {"3": 6.0, "5": 0.0}}]
    >>> revival(after)
    5.0
    """
    last = in_turn[-1]["forgotten"]
    own = (list(one["forgotten"].items())[-1] for one in in_turn[:-1])
    return max(last[name] - value for name, value in own)


def costs(record: Record, retrained: Record) -> dict[str, Measure]:
    """What a model cost and what it read, beside its retrained twin."""
    own, all_of_it = (spent(r["seconds"]) for r in (record, retrained))
    measures = {
        "seconds": Measure(own),
        "share": Measure(own / max(all_of_it, 1e-9)),
        "rates_seconds": Measure(record["seconds"].get("rates", 0.0)),
        "compile_seconds": Measure(record["seconds"].get("compile", 0.0)),
    }
    counted = [sum(r.get("multiply_adds", {}).values()) for r in (record, retrained)]
    if all(counted):
        measures["multiply_adds"] = Measure(counted[0] / counted[1])
    for name, count in record["samples_read"].items():
        measures[f"read/{name}"] = Measure(float(count))
    if record.get("peak_memory") is not None:
        measures["peak_memory"] = Measure(float(record["peak_memory"]))
    if record.get("retained_logit_change") is not None:
        measures["retained_logit_change"] = Measure(record["retained_logit_change"])
    return measures


def summarise(by_seed: Sequence[Sequence[Measures]]) -> dict[str, Summary]:
    """Over training seeds; first the mean over the models of each of them."""
    names = dict.fromkeys(name for some in by_seed for one in some for name in one)
    means = {name: [_mean_of(some, name) for some in by_seed] for name in names}
    return {name: _summary(some) for name, some in means.items()}


def verdict(
    row: Mapping[str, Summary],
    original: Mapping[str, Summary],
    retrained: Mapping[str, Summary],
) -> str:
    """That of an audit, on the means over training seeds."""
    rows = {}
    for name, mine in row.items():
        if None in (mine.gap, mine.floor) or name not in original:
            continue
        before, target = original[name], retrained[name]
        censored = tuple(bool(one.bound) for one in (mine, before, target))
        values = mine.mean, before.mean, (target.mean,), mine.gap, mine.floor
        rows[name] = AuditRow(name, *values, mine.within, censored, 0.0)
    return verdict_of_rows(rows)


def blindness(rows: Mapping[str, Mapping[str, Summary]]) -> str:
    """A sentence, where no audit of the inside tells the original from retraining.

    What any other model has there says nothing either.
    """
    original = rows.get("original", {})
    judged = [original[name].within for name in INNER if name in original]
    if True not in judged or False in judged:
        return ""
    return (
        "No audit of the inside (probe, class means, relearning) tells the original "
        "itself from retraining here: that a model is within the noise says nothing "
        "about its inside."
    )


def mean_of_requests(requests: Iterable[Measures]) -> dict[str, Measure]:
    """The mean over what was forgotten; the floor is that of a single request."""
    requests = list(requests)
    names = dict.fromkeys(name for one in requests for name in one)
    return {name: _mean_of(requests, name) for name in names}


def _summary(measures: Sequence[Measure]) -> Summary:
    known = [m for m in measures if not math.isnan(m.value)] or list(measures[:1])
    mean, width = t_interval([m.value for m in known])
    gaps = [m.value - m.target for m in known if not math.isnan(m.target)]
    floors = [m.floor for m in known if not math.isnan(m.floor)]
    gap, gap_width = t_interval(gaps) if gaps else (None, None)
    floor = float(np.mean(floors)) if floors else None
    judged = gap is not None and floor is not None and len(gaps) > 1
    within = abs(gap) <= floor if judged else None
    bound = max(m.bound for m in known)
    return Summary(mean, width, gap, gap_width, floor, within, len(known), bound)


def _mean_of(some: Sequence[Measures], name: str) -> Measure:
    have = [one[name] for one in some if name in one]
    have = [m for m in have if not math.isnan(m.value)]
    if not have:
        return Measure(math.nan)
    numbers = [float(np.mean([m[i] for m in have])) for i in range(3)]
    return Measure(*numbers, max(m.bound for m in have))


def _retrained(row: Mapping[str, Any], place: Place) -> tuple[float, str]:
    """Of the model retrained from the same seed, or the mean if one has no value."""
    values, bounds = [_number(v) for v in row["retrained"]], row["censored"][2:]
    if len(values) == place.count:
        return values[place.index], ">" * bounds[place.index]
    return float(np.mean(values)) if values else math.nan, ">" * any(bounds)


def _anamnesis(audit: Record, number: int, which: str, place: Place):
    """The Anamnesis Index, where not both times are bounds."""
    for row in audit["rows"]:
        target, bound = _retrained(row, place)
        mine = ">" * row["censored"][number]
        if row["name"] == "relearn" and not (mine and bound):
            value = _number(row[which]) / target if target else math.nan
            return {"anamnesis": Measure(value, bound=mine or "<" * len(bound))}
    return {}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _accuracies(record: Mapping[str, Any]) -> tuple[float, float, float]:
    """On forgotten and retained training samples, and on all test samples, in %."""
    if "forgotten_samples" in record:  # Where samples and not classes are forgotten.
        names = ("forgotten_samples", "retained_samples", "test_samples")
        return tuple(_number(record[name]) for name in names)
    train, confusion = record["train"], np.asarray(record["test"]["confusion"])
    right = 100 * np.trace(confusion) / max(confusion.sum(), 1)
    forgotten = _number(train["forgotten_weighted"])
    return forgotten, _number(train["retained_weighted"]), float(right)


def spent(seconds: Mapping[str, float]) -> float:
    """At the final setting: neither compilation nor the grid."""
    return sum(value for name, value in seconds.items() if name not in _APART)
