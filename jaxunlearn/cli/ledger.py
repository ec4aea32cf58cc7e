"""`jaxunlearn ledger`: requests to forget that come one after another."""

import dataclasses
import json
import textwrap
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.table import Table

from jaxunlearn.cli.classes import forget_numbers
from jaxunlearn.cli.console import Bars, consoles, table
from jaxunlearn.cli.places import check_reachable
from jaxunlearn.cli.settings import (
    Classes,
    MethodSettings,
    Rates,
    UnlearningMethod,
    check_seed,
    keys,
)
from jaxunlearn.cli.unlearn import OnSaved
from jaxunlearn.ledger import Entry, Ledger
from jaxunlearn.ledger.asking import check_method
from jaxunlearn.methods.rules import NotForgotten
from jaxunlearn.metrics.evaluation import class_label, evaluate
from jaxunlearn.serialization import to_dict

_LEGEND = """\
drift: the largest of a layer on retained inputs, of this request; since: likewise,
since the base. r, f: accuracy on retained and forgotten classes of test data, in %."""

Action = Literal["init", "forget", "undo", "replay", "commit", "log"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerCommand(MethodSettings, OnSaved):
    """Keep class moments of a classifier, and forget classes one request at a time.

    Attributes:
      action: init (one pass over the training data), forget, undo (the last request),
        replay (all that stand, compared bit by bit), commit (for good), log.
      folder: of the ledger.
      checkpoint: of init, the classifier's file; later the ledger has its own.
      forget: of forget, the classes, besides those that are forgotten already.
      method: what to forget with; it must read no retained images.
      seed: random seed of a request.
      revival: after a request, measure whether forgotten classes come back, for the
        log; that reads training and test data, to measure alone.
      json: print the log as JSON, a record for each event.
      learning_rates: a grid from which a method that descends takes its rate, by
        validation data; by default it keeps its own, such as --unsc.learning-rate.
    """

    examples = (
        "jaxunlearn ledger init --checkpoint a.safetensors",
        "jaxunlearn ledger forget --forget 3",
        "jaxunlearn ledger log",
    )
    first = (
        *("action", "folder", "checkpoint", "forget", "method", "dataset", "data_dir"),
        *("learning_rates", "seed", "revival", "json"),
    )
    positional = "action"

    action: Action
    folder: Annotated[Path, "FOLDER"] = Path("runs/ledger")
    checkpoint: Annotated[Path | None, "FILE"] = None
    forget: Classes = ()
    method: UnlearningMethod = "unsc"
    seed: int = 0
    revival: bool = True
    json: bool = False
    learning_rates: Rates = ()

    def check(self) -> None:
        """Refuse what cannot be before any data are read."""
        super().check()
        check_seed(self.seed)
        there = (self.folder / "ledger.json").is_file()
        if self.action == "init":
            if self.checkpoint is None:
                msg = "jaxunlearn ledger init needs --checkpoint FILE: the classifier to keep."  # noqa: E501
                raise ValueError(msg)
            if there:
                msg = f"There is a ledger in {self.folder} already: choose another --folder."  # noqa: E501
                raise ValueError(msg)
            check_reachable(self.folder)
            return
        if not there:
            msg = (
                f"There is no ledger in {self.folder}: jaxunlearn ledger init "
                "--checkpoint FILE makes one, and --folder names another."
            )
            raise ValueError(msg)
        if self.checkpoint is not None:
            msg = (
                "--checkpoint is for init: the ledger has the classifier's parameters."  # noqa: E501
            )
            raise ValueError(msg)
        if self.action == "forget":
            if not self.forget:
                msg = "--forget names no class: give at least one, as in --forget 3."
                raise ValueError(msg)
            check_method(self.settings_of(self.method))

    def run(self) -> None:
        """Do it, and say what was done."""
        self.check()
        results, _ = consoles()
        getattr(self, f"_{self.action}")(results)

    def _init(self, results) -> None:
        path, classifier, card = self.read(self.checkpoint)
        if card.forgotten_samples:
            msg = f"{path} has forgotten samples, and a ledger is of classes: take the classifier from before."  # noqa: E501
            raise ValueError(msg)
        names = self.class_names(card)
        (train,) = self.load(card, "train")
        known = {"dataset": self.dataset or card.dataset, "class_names": names}
        card = dataclasses.replace(card, **known)
        ledger = Ledger.open(self.folder, classifier, train, card=card)
        results.print(
            f"Moments of {len(ledger.log[0].classes)} classes, of {len(train)} images, "
            f"and the classifier are in {self.folder}."
        )

    def _forget(self, results) -> None:
        here, ledger = self._opened()
        names = here.class_names(ledger.card)
        asked = forget_numbers(self.forget, names, ledger.card.num_classes)
        grid = self.grid_of(self.method)
        splits = ("train", "test", *(("validation",) if grid else ()))
        data = dict(zip(splits, here.load(ledger.card, *splits), strict=True))
        ledger = Ledger.open(self.folder, train=data["train"])
        before, console = ledger.classifier, consoles()[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotForgotten)  # It is printed below.
            with Bars(console=console) as shown, shown.row(self.method) as move:
                result = ledger.forget(
                    asked,
                    self.settings_of(self.method),
                    key=keys(self.seed)[1],
                    test=data["test"],
                    validation=data.get("validation"),
                    grid=grid or None,
                    progress=move,
                )
        test, forgotten = data["test"], ledger.forgotten
        for head, classifier in (("before", before), ("after", ledger.classifier)):
            results.print(
                f"{head}, on test data\n{evaluate(classifier, test, forgotten)}"
            )
        if result.trace.caution:
            results.print(textwrap.fill(result.trace.caution, 80))
        found = ledger.log[-1].certificate
        for name in ("now", "accumulated"):
            layer = max(found[name], key=lambda layer: found[name][layer] or 0)
            results.print(f"drift {name}: at most {found[name][layer]:.3g} ({layer})")
        if found["warning"]:
            results.print(textwrap.fill(found["warning"], 80))
        if self.revival:
            given = {"key": keys(self.seed)[1], "append": True}
            revived = ledger.revival(data["train"], test, **given)
            for c, one in revived.items():
                results.print(f"class {class_label(c, names)}: {one}")
        results.print(f"Written to {self.folder}.")

    def _undo(self, results) -> None:
        _, ledger = self._opened()
        ledger.undo()
        gone = ", ".join(map(str, ledger.log[-1].classes))
        results.print(f"The request to forget {gone} is undone.")

    def _replay(self, results) -> None:
        here, ledger = self._opened()
        (train,) = here.load(ledger.card, "train")
        found = Ledger.open(self.folder, train=train).replay()
        results.print(f"{found}.")
        if not found.equal:
            raise SystemExit(1)

    def _commit(self, results) -> None:
        _, ledger = self._opened()
        ledger.commit()
        gone = ", ".join(map(str, ledger.log[-1].classes))
        results.print(f"Classes {gone} are forgotten for good; nothing can be undone.")

    def _log(self, results) -> None:
        _, ledger = self._opened()
        if self.json:
            print(json.dumps(to_dict(ledger.log), allow_nan=False))
        else:
            results.print(_table(ledger.log))
            results.print(_LEGEND)

    def _opened(self) -> tuple["LedgerCommand", Ledger]:
        """The ledger, and settings that read the data of its current classifier."""
        ledger = Ledger.open(self.folder)
        return dataclasses.replace(self, checkpoint=ledger.path), ledger


def _table(log: tuple[Entry, ...]) -> Table:
    names, numbers = ["", "event", "classes", "method"], ["drift", "since", "r", "f"]
    rows = table("Events", names, numbers)
    rows.columns[2].no_wrap = False
    for entry in log:
        found, test = entry.certificate or {}, entry.test or {}
        largest = (_largest(found.get(name)) for name in ("now", "accumulated"))
        accuracies = (_shown(test.get(n), ".1f") for n in ("retained", "forgotten"))
        event = entry.kind if entry.about is None else f"{entry.kind} {entry.about}"
        classes = ", ".join(map(str, entry.classes)) if entry.number else ""
        method = (entry.method or {}).get("name", "")
        head = (str(entry.number), event, classes, method)
        rows.add_row(*head, *largest, *accuracies)
    return rows


def _largest(drifts: dict[str, Any] | None) -> str:
    known = [value for value in (drifts or {}).values() if value is not None]
    return _shown(max(known) if known else None, ".2g")


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
