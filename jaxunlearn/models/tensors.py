"""Trees of arrays as named tensors in `.safetensors` files, with a header and a sum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn.capture.layout import path_name
from jaxunlearn.serialization import atomic_write, parse_json

# The entry of the file's own header, as JSON, and the checksum in it: with two entries
# the order, and so the file, would not be the same every time.
_HEADER, _SUM = "jaxunlearn", "sha256"

# What comes back as it went.
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool"),
)

# How many tensors an error names of each kind, and how much of a name.
_NAMED, _LONGEST = 3, 80


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    by_name = {path_name(where): leaf for where, leaf in leaves}
    if len(by_name) < len(leaves):
        names = [path_name(where) for where, _ in leaves]
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"Two leaves have the path {twice}, which must tell them apart: name one of them otherwise."  # noqa: E501
        raise ValueError(msg)
    return by_name


def to_tensors(tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths; of a random key its data."""
    arrays = jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)
    # As JAX holds them; ascontiguousarray would make one dimension of none.
    tensors = {
        name: np.asarray(jnp.asarray(leaf), order="C")
        for name, leaf in named(arrays).items()
    }
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _DTYPES:
            msg = f"{name} is {tensor.dtype}, which safetensors files do not hold: they hold {', '.join(_DTYPES)}."  # noqa: E501
            raise ValueError(msg)
    return tensors


def from_tensors(tensors: dict[str, np.ndarray], tree: PyTree) -> Any:
    """The way back, to a tree like this one."""

    def restored(where, leaf):
        array = jnp.asarray(tensors[path_name(where)])
        if not is_key(leaf):
            return array
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))

    return jax.tree_util.tree_map_with_path(restored, tree)


def describe(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Type and shape of each."""
    return {name: f"{t.dtype}{shown(t.shape)}" for name, t in tensors.items()}


def shown(shape: tuple[int, ...]) -> str:
    """A shape without blanks."""
    return f"[{','.join(map(str, shape))}]"


def check_tensors(
    what: str, stored: Mapping[str, str], wanted: Mapping[str, str], advice: str
) -> None:
    """Refuse tensors, told in words by name, unless they are those that are wanted."""
    faults = {
        "Misshaped": {
            name: f"is {stored[name]} and should be {tensor}"
            for name, tensor in wanted.items()
            if stored.get(name, tensor) != tensor
        },
        "Missing": {n: tensor for n, tensor in wanted.items() if n not in stored},
        "Extra": {n: tensor for n, tensor in stored.items() if n not in wanted},
    }
    parts = []
    for kind, said in faults.items():
        named = [f"{name[:_LONGEST]} {words}" for name, words in said.items()]
        more = f", and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        if named:
            parts.append(f"{kind}: {', '.join(named[:_NAMED])}{more}")
    if parts:
        msg = f"{what}. {'. '.join(parts)}. {advice}"
        raise ValueError(msg)


def write_tensors(
    path: Path, tensors: dict[str, np.ndarray], entries: dict[str, Any]
) -> None:
    """Tensors, and JSON entries in the header, all or nothing."""
    from safetensors.numpy import save

    entries = {**entries, _SUM: _checksum(entries, tensors)}
    metadata = {_HEADER: json.dumps(entries, allow_nan=False)}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Tensors and entries of a file; None for these where another library wrote it."""
    tensors, metadata = read_safetensors(path)
    if _HEADER not in metadata:
        return tensors, None
    entries = parse_json(metadata[_HEADER], f"The card in {path}")
    if entries.pop(_SUM, None) != _checksum(entries, tensors):
        msg = f"{path} is damaged: its checksum is not that of its content. Write it anew."  # noqa: E501
        raise ValueError(msg)
    return tensors, entries


def is_safetensors(path: Path) -> bool:
    """Whether a file is one by its content or by its name."""
    if not path.is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and header of any such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {n: file.get_tensor(n) for n in names}, file.metadata() or {}
    except SafetensorError as error:
        msg = (
            f"{path} is no whole safetensors file ({str(error)[:300]}): write it anew."
        )
        raise ValueError(msg) from error


def _checksum(entries: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(entries).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a random key of the typed kind."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
