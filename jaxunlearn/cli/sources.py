"""Classifiers to start from: a checkpoint, or what a run or a training has left."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import UInt8

from jaxunlearn import training
from jaxunlearn.classifier.classifier import Classifier, Preprocess, freeze
from jaxunlearn.cli.places import partial_of
from jaxunlearn.cli.saved import check_same, load_saved, naming_flag
from jaxunlearn.cli.settings import TrainingSettings, channels_of, keys
from jaxunlearn.methods.batch_statistics import refresh_statistics
from jaxunlearn.models import torch_weights
from jaxunlearn.models.files import read_card
from jaxunlearn.progress import Progress
from jaxunlearn.serialization import read_json
from jaxunlearn.tasks import Data

Settings = TypeVar("Settings", bound=TrainingSettings)


def with_checkpoint(settings: Settings, path: Path) -> Settings:
    """The defaults that a checkpoint sets: what its card says, or none without one."""
    described = read_card(path)
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
        channels=channels_of(card),
        split_seed=card.split_seed,
        imbalance=card.imbalance,
    )


def load_original(
    settings: TrainingSettings, path: Path, image_shape: tuple[int, ...]
) -> Classifier:
    """The classifier of a checkpoint.

    PyTorch's parameters become those of `settings.model`, whose pixels are standardised
    as is usual for the data set.
    """
    described = read_card(path)
    if described is None:
        module = settings.create()
        with naming_flag():
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
        "--imbalance": (card.imbalance, settings.imbalance),
        "image shape": (list(card.image_shape), list(image_shape)),
        "number of classes": (card.num_classes, settings.num_classes()),
        "class names": (card.class_names or names, names),
    }
    advice = "leave the flag out, or choose another checkpoint."
    if (card.image_shape[2], image_shape[2]) == (3, 1):
        advice = "--grey-to-rgb gives the images three channels."
    check_same(compared, str(path), "the run is to have", advice)
    if card.forgotten or card.forgotten_samples:
        what = list(card.forgotten) or f"{len(card.forgotten_samples)} samples"
        msg = (
            f"{path} holds a classifier that has forgotten {what}: a "
            "run compares methods on an original. jaxunlearn unlearn goes on from it."
        )
        raise ValueError(msg)
    return load_saved(path, "--checkpoint").classifier


def given_original(
    settings: TrainingSettings, images: UInt8[np.ndarray, "n h w c"]
) -> Classifier | None:
    """The classifier of --checkpoint; without it, images that can be trained on."""
    if getattr(settings, "checkpoint", None) is not None:
        return load_original(settings, settings.checkpoint, images.shape[1:])
    settings.check_images(images)
    flat = images.min(axis=(0, 1, 2)) == images.max(axis=(0, 1, 2))
    if flat.any() and not settings.mean:
        channel = int(flat.argmax())
        msg = (
            f"Channel {channel} of the training images is {images[0, 0, 0, channel]} "
            "everywhere, and its standard deviation 0, by which pixels are divided: "
            "give --mean and --std, or other images."
        )
        raise ValueError(msg)
    return None


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
    own = {"preprocess": settings.preprocess()}
    own["channels"] = data.images.shape[-1]  # which was checked as they were read
    if "key" not in options:
        own["key"] = keys(settings.seed)[0]
    validation = splits["validation"]
    kept = np.isin(validation.labels, data.labels)
    classifier = training.fit(
        settings.create(),
        data,
        recipe=settings.recipe,
        validation=validation.take(kept),
        progress=progress,
        **own | options,
    )
    if settings.refresh_statistics:
        classifier = refresh_statistics(classifier, data.images, key=None)
    return jax.block_until_ready(classifier)


class Source(NamedTuple):
    """Where the classifiers of an inversion are, and what a run says of its classes."""

    file: Path
    forgotten: tuple[int, ...] = ()
    second: Path | None = None


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
        config_of = read_json(config)
        forgotten = config_of.get("forget")
        samples = config_of.get("samples_sha256")
        if not isinstance(forgotten, list) or not (forgotten or samples):
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
