"""`jaxunlearn unlearn` and `jaxunlearn evaluate`: work on a saved classifier."""

import dataclasses
import json
from collections.abc import Callable

from jaxunlearn import datasets
from jaxunlearn.cli.console import bars, consoles
from jaxunlearn.cli.forget import keys
from jaxunlearn.cli.settings import (
    DESCENDING,
    Evaluate,
    Unlearn,
    check_forget,
    check_image_shape,
)
from jaxunlearn.cli.source import check_names, check_seed
from jaxunlearn.methods import forget_task
from jaxunlearn.metrics.evaluation import evaluate
from jaxunlearn.models.files import Card, load_classifier, save_classifier
from jaxunlearn.serialization import to_dict
from jaxunlearn.tasks import Data, Task, check_classes, split_by_class


def unlearn_saved(settings: Unlearn) -> None:
    """Forget classes in a saved classifier, and save the result."""
    check_names("method for a saved classifier", [settings.method], DESCENDING)
    check_seed(settings.seed)
    settings.check_rates()
    _check_out(settings)
    classifier, card = load_classifier(settings.checkpoint)
    check_forget(settings.forget, card.num_classes)
    # Classes that it has forgotten before are neither protected nor new labels.
    forgotten = tuple(sorted({*card.forgotten, *settings.forget}))
    check_forget(forgotten, card.num_classes)
    load = _loader(settings, card)
    train, validation, test = map(load, ("train", "validation", "test"))
    task = Task(
        split_by_class(train, settings.forget)[0],
        split_by_class(train, forgotten)[1],
        forgotten,
        num_classes=card.num_classes,
    )
    results, progress = consoles()
    with bars(progress) as shown, shown.row(settings.method) as move:
        result = forget_task(
            settings.settings_of(settings.method),
            classifier,
            task,
            validation=validation,
            grid=settings.learning_rates,
            key=keys(settings.seed)[1],
            progress=move,
        )
    unlearned, rate = result.classifier, result.trace.tuned["learning_rate"]
    results.print(f"before\n{evaluate(classifier, test, forgotten)}")
    results.print(f"after {settings.method}, learning rate {rate:g}")
    results.print(str(evaluate(unlearned, test, forgotten)))
    card = dataclasses.replace(card, name=settings.method, forgotten=forgotten)
    save_classifier(settings.out, unlearned, card)
    results.print(f"Written to {settings.out}.")


def evaluate_saved(settings: Evaluate) -> None:
    """Accuracy of a saved classifier on every class."""
    classifier, card = load_classifier(settings.checkpoint)
    forgotten = card.forgotten if settings.forget is None else settings.forget
    check_classes(forgotten, card.num_classes, name="--forget")
    data = _loader(settings, card)(settings.split)
    found = evaluate(classifier, data, forgotten)
    results, _ = consoles()
    if settings.json:
        print(json.dumps(to_dict(found), allow_nan=False))
    else:
        results.print(str(found))


def _check_out(settings: Unlearn) -> None:
    """Refuse a file that cannot be written, before there is something to write."""
    out = settings.out
    if out.suffix != ".safetensors":
        msg = f"--out must end in .safetensors; it is {out}."
        raise ValueError(msg)
    if out.is_dir() or (out.exists() and not settings.overwrite):
        msg = f"{out} is there: choose another file, or replace it with --overwrite."
        raise ValueError(msg)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"The folder {out.parent} cannot be made ({error.strerror}): choose another place with --out."  # noqa: E501
        raise OSError(msg) from error


def _loader(settings: Unlearn | Evaluate, card: Card) -> Callable[[str], Data]:
    """Splits of the data set, as the classifier was trained on them."""
    name = settings.dataset or card.dataset
    if name is None:
        msg = f"{settings.checkpoint} does not say what it was trained on: give --dataset."  # noqa: E501
        raise ValueError(msg)
    folder = None if settings.data_dir is None else str(settings.data_dir)
    found = datasets.num_classes(name, data_dir=folder)
    if found != card.num_classes:
        msg = (
            f"{settings.checkpoint} tells {card.num_classes} classes apart and the "
            f"data set {name} has {found}."
        )
        raise ValueError(msg)

    def load(split):
        data = datasets.load(
            name, split, data_dir=folder, seed=card.split_seed, size=card.size
        )
        check_image_shape(settings.checkpoint, card.image_shape, data)
        return data

    return load
