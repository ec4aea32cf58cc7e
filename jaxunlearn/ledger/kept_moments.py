"""Moments of classes as tensors of a file, and back."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxunlearn.capture.grams import Moment
from jaxunlearn.capture.layout import Layout, path_name
from jaxunlearn.models.tensors import read_tensors, write_tensors
from jaxunlearn.serialization import from_dict, to_dict


def write_moments(path: Path, moments: PyTree, leave_out: tuple[int, ...] = ()) -> None:
    """The moments of all classes but some, with how each weight is read.

    Classes are in ascending order. Leaves without a moment are not in the file.
    """
    tensors, layouts, classes = {}, {}, []
    for where, moment in _moments(moments):
        name = path_name(where)
        classes = sorted(c for c in moment.classes if c not in leave_out)
        rows = np.array([moment.classes.index(c) for c in classes], int)
        tensors[f"{name}/gram"] = np.ascontiguousarray(np.asarray(moment.gram)[rows])
        tensors[f"{name}/rows"] = np.ascontiguousarray(np.asarray(moment.rows)[rows])
        layouts[name] = to_dict(moment.layout)
    write_tensors(path, tensors, {"classes": classes, "layouts": layouts})


def read_moments(path: Path, params: PyTree) -> PyTree:
    """Like params: `Moment` with a class axis, on the host, or None.

    Raises:
      ValueError: the file is damaged, or of another network.
    """
    tensors, entries = read_tensors(path)
    entries = {} if entries is None else entries
    classes, layouts = tuple(entries.get("classes", ())), entries.get("layouts", {})

    def restored(where: Any, leaf: Any) -> Moment | None:
        name = path_name(where)
        if name not in layouts:
            return None
        layout = from_dict(Layout, layouts.pop(name), f"{name}.")
        if layout.shape != np.shape(leaf):
            msg = f"{path} holds a moment of {name} for a weight of {list(layout.shape)}, and that of the classifier is {list(np.shape(leaf))}: give the classifier that the ledger was opened with."  # noqa: E501
            raise ValueError(msg)
        gram, rows = tensors[f"{name}/gram"], tensors[f"{name}/rows"]
        return Moment(gram, rows, layout, classes)

    found = jax.tree_util.tree_map_with_path(restored, params)
    if layouts:
        msg = f"{path} holds a moment of {next(iter(layouts))}, which the classifier has not: give the classifier that the ledger was opened with."  # noqa: E501
        raise ValueError(msg)
    return found


def _moments(moments: PyTree) -> list[tuple[Any, Moment]]:
    is_leaf = lambda node: isinstance(node, Moment)  # noqa: E731
    return jax.tree_util.tree_leaves_with_path(moments, is_leaf=is_leaf)
