"""The classifier that a run starts from where it does not train one."""

import dataclasses
import json
from pathlib import Path

from jaxunlearn.classifier.classifier import Classifier, Preprocess, freeze
from jaxunlearn.cli.settings import Run
from jaxunlearn.models import torch_weights
from jaxunlearn.models.files import Card, load_classifier, read_card


def with_checkpoint(run: Run, path: Path) -> Run:
    """The defaults that a checkpoint sets: what its card says, or none without one.

    Raises:
      ValueError: the file is damaged, or its classifier has forgotten classes.
    """
    found = _card(path)
    if found is None:
        return run
    card, preprocess = found
    return dataclasses.replace(
        run,
        mean=None if preprocess is None else preprocess.mean,
        std=None if preprocess is None else preprocess.std,
        model=card.model,
        options=_texts(card),
        dataset=run.dataset if card.dataset is None else card.dataset,
        size=card.size,
        split_seed=card.split_seed,
    )


def load_original(run: Run, image_shape: tuple[int, ...]) -> Classifier:
    """The classifier of `run.checkpoint`.

    PyTorch's parameters become those of `run.model`, whose pixels are standardised as
    is usual for the data set.

    Args:
      run: names the file and its network.
      image_shape: (h, w, c) of the data set.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not of this network, or not for these images.
    """
    path = run.checkpoint
    found = _card(path)
    if found is None:
        module = run.create()
        variables = torch_weights.from_torch(module, path, image_shape=image_shape)
        return freeze(module, variables, preprocess=run.preprocess(run.validation_seed))
    card, preprocess = found
    pixels = None if run.mean is None else Preprocess(run.mean, run.std)
    there = {
        "--mean and --std": (preprocess, pixels),
        "--model": (card.model, run.model),
        "--options": (card.options, run.model_options()),
        "--split-seed": (card.split_seed, run.validation_seed),
        "image shape": (list(card.image_shape), list(image_shape)),
        "number of classes": (card.num_classes, run.num_classes()),
    }
    for name, (stored, asked) in there.items():
        if stored != asked:
            msg = (
                f"{path} holds a classifier of {name} {stored}, and the run is to have "
                f"{asked}: leave the flag out, or choose another checkpoint."
            )
            raise ValueError(msg)
    if card.forgotten:
        msg = (
            f"{path} holds a classifier that has forgotten {list(card.forgotten)}: a "
            "run compares methods on an original. jaxunlearn unlearn goes on from it."
        )
        raise ValueError(msg)
    return load_classifier(path)[0]


def _card(path: Path) -> tuple[Card, Preprocess | None] | None:
    if not path.is_file():
        msg = f"There is no file {path}: --checkpoint takes a .safetensors, .pt or .pth file."  # noqa: E501
        raise FileNotFoundError(msg)
    return read_card(path) if path.suffix == ".safetensors" else None


def _texts(card: Card) -> tuple[str, ...]:
    """A card's options as the command line takes them."""
    return tuple(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in card.options.items()
    )
