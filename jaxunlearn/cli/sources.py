"""Classifiers to start from: a checkpoint, or what a run or a training has left."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import UInt8

from jaxunlearn import training
from jaxunlearn.classifier.classifier import Classifier, Preprocess, freeze
from jaxunlearn.cli.places import partial_of
from jaxunlearn.cli.settings import TrainingSettings, keys
from jaxunlearn.models import torch_weights
from jaxunlearn.models.files import Card, load_classifier, read_card
from jaxunlearn.progress import Progress
from jaxunlearn.serialization import checksum, read_json, to_dict
from jaxunlearn.tasks import Data

Settings = TypeVar("Settings", bound=TrainingSettings)


def with_checkpoint(settings: Settings, path: Path) -> Settings:
    """The defaults that a checkpoint sets: what its card says, or none without one."""
    described = _card(path)
    if described is None:
        return settings
    card, preprocess = described
    options = tuple(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in card.options.items()
    )
    return dataclasses.replace(
        settings,
        mean=None if preprocess is None else preprocess.mean,
        std=None if preprocess is None else preprocess.std,
        model=card.model,
        options=options,
        dataset=settings.dataset if card.dataset is None else card.dataset,
        size=card.size,
        split_seed=card.split_seed,
    )


def load_original(
    settings: TrainingSettings, path: Path, image_shape: tuple[int, ...]
) -> Classifier:
    """The classifier of a checkpoint.

    PyTorch's parameters become those of `settings.model`, whose pixels are standardised
    as is usual for the data set.
    """
    described = _card(path)
    if described is None:
        module = settings.create()
        variables = torch_weights.from_torch(module, path, image_shape=image_shape)
        return freeze(module, variables, preprocess=settings.preprocess())
    card, preprocess = described
    pixels = Preprocess(settings.mean, settings.std) if settings.mean else None
    names = settings.class_names()
    compared = {
        "--mean and --std": (preprocess, pixels),
        "--model": (card.model, settings.model),
        "--options": (card.options, settings.model_options()),
        "--split-seed": (card.split_seed, settings.validation_seed),
        "image shape": (list(card.image_shape), list(image_shape)),
        "number of classes": (card.num_classes, settings.num_classes()),
        "class names": (card.class_names or names, names),
    }
    advice = "leave the flag out, or choose another checkpoint."
    _check_same(compared, str(path), "the run is to have", advice)
    if card.forgotten:
        msg = (
            f"{path} holds a classifier that has forgotten {list(card.forgotten)}: a "
            "run compares methods on an original. jaxunlearn unlearn goes on from it."
        )
        raise ValueError(msg)
    return load_classifier(path)[0]


def given_original(
    settings: TrainingSettings, images: UInt8[np.ndarray, "n h w c"]
) -> Classifier | None:
    """The classifier of --checkpoint; without it, the network must take the images."""
    if settings.checkpoint is None:
        return settings.check_images(images)
    return load_original(settings, settings.checkpoint, images.shape[1:])


def train_network(
    settings: TrainingSettings,
    splits: Mapping[str, Data],
    data: Data,
    progress: Progress,
    **options,
) -> Classifier:
    """Train on these samples; of the validation data only the same classes count.

    Key and pixels are by default those of the original.
    """
    own = {"key": keys(settings.seed)[0], "preprocess": settings.preprocess()}
    validation = splits["validation"]
    kept = np.isin(validation.labels, data.labels)
    classifier = training.fit(
        settings.create(),
        data,
        recipe=settings.recipe,
        validation=Data(validation.images[kept], validation.labels[kept]),
        progress=progress,
        **own | options,
    )
    return jax.block_until_ready(classifier)


def _card(path: Path) -> tuple[Card, Preprocess | None] | None:
    if not path.is_file():
        msg = f"There is no file {path}: --checkpoint takes a .safetensors, .pt or .pth file."  # noqa: E501
        raise FileNotFoundError(msg)
    return read_card(path) if path.suffix == ".safetensors" else None


class Source(NamedTuple):
    """Where the classifiers of an inversion are, and what a run says of its classes."""

    file: Path
    forgotten: tuple[int, ...] = ()
    second: Path | None = None


class SavedClassifier(NamedTuple):
    """A classifier from a file."""

    path: Path
    classifier: Classifier
    card: Card

    def to_dict(self) -> dict[str, Any]:
        """What tells where it comes from."""
        card = to_dict(self.card)
        card["preprocess"] = to_dict(self.classifier.preprocess)
        return {"path": str(self.path), "sha256": checksum(self.path), "card": card}


def find_source(checkpoint: Path | None, folder: Path | None) -> Source:
    """The file to invert, and what its folder knows of it."""
    if folder is None:
        path = Path(checkpoint or "")
        if path.is_dir():
            msg = f"{path} is a folder: give it as --from-run, or a file in it as --checkpoint."  # noqa: E501
            raise ValueError(msg)
        return Source(path)
    unfinished = folder if folder.suffix == ".partial" else None
    if not folder.exists() and folder.name:
        unfinished = partial_of(folder)
    if unfinished is not None and (unfinished / "request.json").is_file():
        msg = (
            f"The run in {unfinished} is unfinished: the command that began it takes "
            "it up; invert it when it is done."
        )
        raise ValueError(msg)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        msg = f"{folder} {what}: --from-run takes the folder of a run or a training."
        raise ValueError(msg)
    return _of_folder(folder)


def _of_folder(folder: Path) -> Source:
    config = folder / "config.json"
    original, model = folder / "original.safetensors", folder / "model.safetensors"
    if config.is_file() and original.is_file():
        second = folder / "retrained.safetensors"
        forgotten = read_json(config).get("forget")
        if not isinstance(forgotten, list) or not forgotten:
            msg = f"{config} does not say which classes the run forgets: its entry forget is {forgotten!r}."  # noqa: E501
            raise ValueError(msg)
        second = second if second.is_file() else None
        return Source(original, tuple(forgotten), second)
    if config.is_file() and (folder / "metrics.jsonl").is_file():
        if not (model.is_file() and model.with_suffix(".json").is_file()):
            msg = f"The training in {folder} is unfinished: finish it with jaxunlearn train --resume."  # noqa: E501
            raise ValueError(msg)
        return Source(model)
    msg = (
        f"{folder} is neither a run (with original.safetensors and config.json) nor a "
        "training (with model.safetensors and config.json): name a file in it with "
        "--checkpoint, or another folder."
    )
    raise ValueError(msg)


def load_saved(path: Path, flag: str) -> SavedClassifier:
    """The classifier in a file that a flag names."""
    if path.suffix != ".safetensors":
        msg = (
            f"{flag} takes a .safetensors file that jaxunlearn wrote; it is {path}. "
            "jaxunlearn run --checkpoint makes one of PyTorch's parameters."
        )
        raise ValueError(msg)
    return SavedClassifier(path, *load_classifier(path))


def load_companion(path: Path, flag: str, original: SavedClassifier) -> SavedClassifier:
    """Another classifier, of the same classes and images."""
    companion = load_saved(path, flag)
    both = (companion, original)
    compared = {
        "number of classes": [s.card.num_classes for s in both],
        "image shape": [list(s.card.image_shape) for s in both],
        "pixel range": [
            "any" if s.classifier.preprocess is None else "[0, 1]" for s in both
        ],
    }
    other = f"that of {original.path} is"
    _check_same(compared, f"{flag} {path}", other, "they must be the same.")
    return companion


def _check_same(
    compared: Mapping[str, Sequence[Any]], what: str, other: str, advice: str
) -> None:
    for name, (one, two) in compared.items():
        if one != two:
            msg = f"{what} holds a classifier of {name} {one}, and {other} {two}: {advice}"  # noqa: E501
            raise ValueError(msg)
