"""The classifiers that an inversion starts from, out of files and folders."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.models.files import Card, load_classifier
from jaxunlearn.serialization import read_json, to_dict


class Origin(NamedTuple):
    """Where the classifiers are, and what a run says of its classes."""

    file: Path
    forgotten: tuple[int, ...] = ()
    second: Path | None = None
    data_dir: str | None = None


class Saved(NamedTuple):
    """A classifier from a file."""

    path: Path
    classifier: Classifier
    card: Card

    def plain(self) -> dict[str, Any]:
        """What tells where it comes from."""
        with self.path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        card = to_dict(self.card)
        card["preprocess"] = to_dict(self.classifier.preprocess)
        return {"path": str(self.path), "sha256": checksum, "card": card}


def find_origin(checkpoint: Path | None, folder: Path | None) -> Origin:
    """The file to invert, and what its folder knows of it.

    Args:
      checkpoint: a file, or None.
      folder: of a run or a training, where there is no checkpoint.

    Raises:
      ValueError: it is something else, or is not finished.
    """
    if folder is None:
        path = Path(checkpoint or "")
        if path.is_dir():
            msg = f"{path} is a folder: give it as --from-run, or a file in it as --checkpoint."  # noqa: E501
            raise ValueError(msg)
        return Origin(path)
    unfinished = folder if folder.suffix == ".partial" else None
    if not folder.exists() and folder.name:
        unfinished = folder.with_name(f"{folder.name}.partial")
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


def _of_folder(folder: Path) -> Origin:
    config = folder / "config.json"
    original, model = folder / "original.safetensors", folder / "model.safetensors"
    if config.is_file() and original.is_file():
        found, second = read_json(config), folder / "retrained.safetensors"
        forgotten = found.get("forget")
        if not isinstance(forgotten, list) or not forgotten:
            msg = f"{config} does not say which classes the run forgets: its entry forget is {forgotten!r}."  # noqa: E501
            raise ValueError(msg)
        return Origin(
            original,
            tuple(forgotten),
            second if second.is_file() else None,
            _text(found.get("data_dir")),
        )
    if config.is_file() and (folder / "metrics.jsonl").is_file():
        if not (model.is_file() and model.with_suffix(".json").is_file()):
            msg = f"The training in {folder} is unfinished: finish it with jaxunlearn train --resume."  # noqa: E501
            raise ValueError(msg)
        return Origin(model, data_dir=_text(read_json(config).get("data_dir")))
    msg = (
        f"{folder} is neither a run (with original.safetensors and config.json) nor a "
        "training (with model.safetensors and config.json): name a file in it with "
        "--checkpoint, or another folder."
    )
    raise ValueError(msg)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def load_saved(path: Path, flag: str) -> Saved:
    """The classifier in a file that a flag names."""
    if path.suffix != ".safetensors":
        msg = (
            f"{flag} takes a .safetensors file that jaxunlearn wrote; it is {path}. "
            "jaxunlearn run --checkpoint makes one of PyTorch's parameters."
        )
        raise ValueError(msg)
    return Saved(path, *load_classifier(path))


def load_companion(path: Path, flag: str, original: Saved) -> Saved:
    """Another classifier, of the same classes and images."""
    found = load_saved(path, flag)
    there = {
        "number of classes": [s.card.num_classes for s in (found, original)],
        "image shape": [list(s.card.image_shape) for s in (found, original)],
        "pixel range": [
            "any" if s.classifier.preprocess is None else "[0, 1]"
            for s in (found, original)
        ],
    }
    for name, (one, other) in there.items():
        if one != other:
            msg = (
                f"{flag} {path} holds a classifier of {name} {one}, and that of "
                f"{original.path} is {other}: they must be the same."
            )
            raise ValueError(msg)
    return found
