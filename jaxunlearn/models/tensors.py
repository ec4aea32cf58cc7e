"""Trees of arrays as named tensors in `.safetensors` files, with a header and a sum."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.serialization import atomic_write

# The entry of the file's own header, as JSON, and the checksum in it: with two entries
# the order, and so the file, would not be the same every time.
_HEADER, _SUM = "jaxunlearn", "sha256"


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(where): leaf for where, leaf in leaves}


def unnamed(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nested dictionaries of the leaves whose paths are given.

    >>> unnamed(named({"params": {"kernel": np.ones(2)}}))
    {'params': {'kernel': Array([1., 1.], dtype=float32)}}
    """
    return unflatten_dict(
        {tuple(n.split("/")): jnp.asarray(tensors[n]) for n in tensors}
    )


def to_tensors(tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths; of a random key its data."""
    arrays = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)
    return {name: np.ascontiguousarray(leaf) for name, leaf in named(arrays).items()}


def from_tensors(tensors: dict[str, np.ndarray], tree: PyTree) -> Any:
    """The way back, to a tree like this one."""

    def restored(where, leaf):
        array = jnp.asarray(tensors[path_name(where)])
        if not _is_key(leaf):
            return array
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))

    return jax.tree_util.tree_map_with_path(restored, tree)


def check_tensors(tensors: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    """Refuse tensors that are not those of the network, naming one and both shapes."""
    for name, leaf in expected.items():
        if name not in tensors:
            msg = f"The tensor {name} of the network is missing."
            raise ValueError(msg)
        stored, needed = (
            f"{t.dtype}[{','.join(map(str, t.shape))}]" for t in (tensors[name], leaf)
        )
        if stored != needed:
            msg = f"The tensor {name} is {stored} and the network's is {needed}."
            raise ValueError(msg)
    for name in tensors:
        if name not in expected:
            msg = f"The network has no tensor {name}; it has: {', '.join(expected)}."
            raise ValueError(msg)


def write_tensors(
    path: Path, tensors: dict[str, np.ndarray], entries: dict[str, Any]
) -> None:
    """Tensors, and JSON entries in the header, all or nothing."""
    from safetensors.numpy import save

    header = json.dumps(entries, allow_nan=False)
    entries = {**entries, _SUM: _checksum(header, tensors)}
    metadata = {_HEADER: json.dumps(entries, allow_nan=False)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def read_header(path: Path) -> str | None:
    """The entries of a file, as JSON; None where another library wrote it."""
    with open_safetensors(path) as file:
        header = (file.metadata() or {}).get(_HEADER)
    return None if header is None else _parted(header)[0]


def _parted(header: str) -> tuple[str, str]:
    """The entries without the checksum, and that, or "" if there is none."""
    try:
        entries = dict(json.loads(header))
    except (ValueError, TypeError):
        return header, ""  # said where the entries are read
    checksum = entries.pop(_SUM, "")
    return json.dumps(entries), checksum


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Tensors and entries of a file that this library wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or another library wrote it.
    """
    if not path.is_file():
        msg = f"There is no file {path}: give the path of a .safetensors file."
        raise FileNotFoundError(msg)
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = metadata.get(_HEADER)
    if header is None:
        msg = f"{path} does not say which network it is of: only files that jaxunlearn wrote can be loaded."  # noqa: E501
        raise ValueError(msg)
    header, checksum = _parted(header)
    if checksum not in ("", _checksum(header, tensors)):
        msg = f"{path} is damaged: its checksum is not that of its content. Write it anew."  # noqa: E501
        raise ValueError(msg)
    return tensors, header


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """A file for reading.

    Raises:
      ValueError: it is no whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        msg = f"{path} is no whole safetensors file ({error}): write it anew."
        raise ValueError(msg) from error


def _checksum(header: str, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
