"""Classifiers as `.safetensors` files that say how to rebuild themselves."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import models
from jaxunlearn.classifier import Classifier, Preprocess, freeze
from jaxunlearn.layout import path_name


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` if all goes well.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("all of it")
    ...     (Path(folder) / "a.txt").read_text()
    'all of it'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: some writers go by it.
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_classifier(
    path: Path, classifier: Classifier, card: Mapping[str, Any]
) -> None:
    """Write parameters, state and what rebuilds the network, all or nothing.

    Args:
      path: ends in `.safetensors`.
      classifier: of a network made by `models.create`.
      card: at least `model` (its name), `num_classes` and `options` (the arguments of
        `models.create`); stored as JSON in the file's header.
    """
    from safetensors.numpy import save

    tree = {"params": classifier.params, "state": classifier.state}
    tensors = {
        path_name(where): np.ascontiguousarray(leaf)
        for where, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    card = dict(card)
    if classifier.preprocess is not None:
        card["preprocess"] = {
            "mean": classifier.preprocess.mean,
            "std": classifier.preprocess.std,
        }
    with written_whole(Path(path)) as temporary:
        temporary.write_bytes(save(tensors, {"jaxunlearn": json.dumps(card)}))


def load_classifier(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """The classifier that `save_classifier` wrote, and its card.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no safetensors file, has no card, or its tensors do not
        fit the network, whose shapes are then named.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        msg = f"There is no file {path}: give the path of a .safetensors file."
        raise FileNotFoundError(msg)
    try:
        with safe_open(path, framework="numpy") as opened:
            card = (opened.metadata() or {}).get("jaxunlearn")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        msg = f"{path} is no whole safetensors file ({error}): write it anew."
        raise ValueError(msg) from error
    if card is None:
        msg = f"{path} does not say which network it is of: only files that jaxunlearn wrote can be loaded."  # noqa: E501
        raise ValueError(msg)
    card = json.loads(card)
    tree: dict[str, Any] = {"params": {}, "state": {}}
    for name, value in tensors.items():
        *folders, leaf = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = jnp.asarray(value)
    model = models.create(
        card["model"], num_classes=card["num_classes"], **card["options"]
    )  # noqa: E501
    preprocess = Preprocess(**card["preprocess"]) if "preprocess" in card else None
    variables = {"params": tree["params"], **tree["state"]}
    return freeze(model, variables, preprocess=preprocess), card
