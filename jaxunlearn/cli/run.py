"""`jaxunlearn run`: train, forget, compare."""

import textwrap
from typing import Any

from jaxunlearn import parallel
from jaxunlearn.cli.checkpoint import load_original
from jaxunlearn.cli.console import bars, comparison, consoles
from jaxunlearn.cli.distributed import is_writer, joined
from jaxunlearn.cli.pieces import Pieces, title_of
from jaxunlearn.cli.settings import Run
from jaxunlearn.cli.shared import SharedFolder
from jaxunlearn.datasets.splits import SPLITS
from jaxunlearn.methods.grid import TOLERANCE
from jaxunlearn.models.files import versions
from jaxunlearn.tasks import Data, split_by_class

_LEGEND = """\
Acc_r, Acc_f: test accuracy, mean over retained and over forgotten classes.
change: of the logits of the retained test images, relative to the original's.
seconds: at the final rate, without compilation, which the first to need a
program pays for all.
rate: learning rate, """


def run(settings: Run) -> None:
    """Do all of it, and print the table; alone, or as one of several processes."""
    settings.check()
    with joined(settings):
        _run(settings)


def _run(settings: Run) -> None:
    results, progress = consoles(quiet=not is_writer())
    splits = _load(settings)
    given, images = None, splits["train"].images
    if settings.checkpoint is None:
        settings.check_images(images)
    else:
        given = load_original(settings, images.shape[1:])
    folder = SharedFolder(settings)
    if folder.resumed:
        progress.print(f"Taking up the unfinished run in {folder.partial}.")
    try:
        with bars(progress) as shown:
            mesh = parallel.global_mesh()
            pieces = Pieces(settings, splits, folder, shown, given=given, mesh=mesh)
            records = {"original": pieces.original()}
            for name in settings.methods:
                records[title_of(name)] = pieces.unlearned(name)
            judged = settings.judge_proxies and "covarnav" in settings.methods
            proxies = pieces.proxies() if judged else None
        _write(settings, folder, splits, records, proxies)
        final = folder.finish()
    except KeyboardInterrupt:
        msg = f"interrupted. What is done lies in {folder.partial}; the same command takes it up."  # noqa: E501
        raise KeyboardInterrupt(msg) from None
    classes = ", ".join(map(str, settings.forget))
    title = (
        f"{settings.dataset}, {settings.model}, forget {classes}, seed {settings.seed}"
    )
    results.print(comparison(records, title))
    chosen = "chosen on validation data by one rule for all."
    results.print(_LEGEND + (chosen if settings.learning_rates else "set by hand."))
    if proxies is not None:
        results.print(_judgement(proxies))
    results.print(f"Written to {final}.")


def _load(settings: Run) -> dict[str, Data]:
    """The three splits, each of which must hold forgotten and retained samples."""
    splits = {}
    for split in SPLITS:
        splits[split] = settings.load(split, settings.validation_seed)
        split_by_class(splits[split], settings.forget)
    return splits


def _write(
    settings: Run,
    folder: SharedFolder,
    splits: dict[str, Data],
    records: dict[str, dict[str, Any]],
    proxies: dict[str, Any] | None,
) -> None:
    """The files that need all of the run: configuration, metrics, accuracies."""
    config = settings.plain()
    for name in settings.methods:
        rate = records[title_of(name)]["learning_rate"]
        if rate is not None:
            config[name.replace("-", "_")]["learning_rate"] = rate
    folder.write_json("config.json", config)
    metrics = {
        "classifiers": records,
        "proxies": proxies,
        "learning_rate_rule": "the smallest of the grid whose Acc_r - Acc_f on "
        f"validation data is within {TOLERANCE:g} of the best",
        "samples": {split: len(data) for split, data in splits.items()},
        "versions": versions(),
        "device": parallel.device_kind(),
        "devices": parallel.device_count(),
        "processes": parallel.process_count(),
    }
    folder.write_json("metrics.json", metrics)
    folder.save_accuracies(records, settings.forget)


def _judgement(proxies: dict[str, Any]) -> str:
    """What the numbers on proxies come to."""
    captured = {n: c for n, c in proxies["captured_energy"].items() if c is not None}
    least = min(captured, key=captured.__getitem__)
    second = proxies["second_accuracy"]
    others = "" if second is None else f", the retrained one {second:.0f} %"
    true = proxies["with_true_images"]
    text = (
        f"CovarNav's proxies capture at least {100 * captured[least]:.1f} % of the "
        f"retained data's energy in a layer ({least}). The original recognises "
        f"{proxies['accuracy']:.0f} %{others}. With as many true images instead: "
        f"Acc_r {true['retained']:.2f}, Acc_f {true['forgotten']:.2f}, change "
        f"{true['retained_logit_change']:.3f}."
    )
    return textwrap.fill(text, 80)
