"""`jaxunlearn unlearn` and `jaxunlearn evaluate`: work on a saved classifier."""

import dataclasses
import json

import jax
from rich.console import Console

from jaxunlearn import datasets, methods
from jaxunlearn.cli.console import bars
from jaxunlearn.cli.run import evaluation_record
from jaxunlearn.cli.settings import Evaluate, Unlearn, check_names
from jaxunlearn.evaluation import evaluate
from jaxunlearn.methods import Descent
from jaxunlearn.methods.selection import choose_learning_rate
from jaxunlearn.saving import load_classifier, save_classifier
from jaxunlearn.tasks import Task, check_classes, split_by_class


def unlearn_saved(settings: Unlearn, console: Console) -> None:
    """Forget classes in a saved classifier, and save the result."""
    known = [n for n, m in methods.by_name.items() if issubclass(m, Descent)]
    check_names("method for a saved classifier", [settings.method], known)
    if settings.out.suffix != ".safetensors":
        msg = f"--out must end in .safetensors; it is {settings.out}."
        raise ValueError(msg)
    if settings.out.exists() and not settings.overwrite:
        msg = f"{settings.out} is there: choose another file, or replace it with --overwrite."  # noqa: E501
        raise ValueError(msg)
    classifier, card = load_classifier(settings.checkpoint)
    check_classes(settings.forget, card["num_classes"], name="forget")
    load = _loader(settings, card)
    forget, retain = split_by_class(load("train"), settings.forget)
    task = Task(forget, retain, settings.forget, num_classes=card["num_classes"])
    method = settings.settings_of(settings.method)
    keys = jax.random.split(jax.random.key(settings.seed))
    with bars(console) as shown:
        setting = method.prepare(classifier, task, key=keys[0], progress=shown.update)
        if settings.learning_rates:
            rate, _ = choose_learning_rate(
                method,
                classifier,
                task,
                setting,
                load("validation"),
                settings.learning_rates,
                key=keys[1],
                progress=lambda done, total: shown.update("rates", done, total),
            )
            method = dataclasses.replace(method, learning_rate=rate)
        result = method.descend(
            classifier, task, setting, key=keys[1], progress=shown.update
        )
    test = load("test")
    console.print("before", str(evaluate(classifier, test, settings.forget)), sep="\n")
    after = evaluate(result.classifier, test, settings.forget)
    console.print(f"after {settings.method}, learning rate {method.learning_rate:g}")
    console.print(str(after))
    forgotten = sorted({*card.get("forgotten", []), *settings.forget})
    save_classifier(
        settings.out,
        result.classifier,
        {**card, "name": settings.method, "forgotten": forgotten},
    )
    console.print(f"Written to {settings.out}.")


def evaluate_saved(settings: Evaluate, console: Console) -> None:
    """Accuracy of a saved classifier on every class."""
    classifier, card = load_classifier(settings.checkpoint)
    found = evaluate(
        classifier, _loader(settings, card)(settings.split), settings.forget
    )
    if settings.json:
        print(json.dumps(evaluation_record(found)))
    else:
        console.print(str(found))


def _loader(settings: Unlearn | Evaluate, card):
    name = settings.dataset or card.get("dataset")
    check_names("data set", [name], datasets.names())

    def load(split):
        return datasets.load(
            name, split, data_dir=settings.data_dir, seed=card.get("split_seed", 0)
        )

    return load
