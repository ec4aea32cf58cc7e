"""Named tensors out of a dictionary, a file of `torch.save` or a safetensors file."""

import os
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.checks import short
from jaxunlearn.models.tensors import is_safetensors, read_safetensors

# Under these training scripts put the weights, one inside the other.
_WRAPPERS = (
    *("net", "network", "model", "module", "model_state", "model_state_dict"),
    *("state_dict", "weights", "ema", "model_ema", "state_dict_ema"),
)
_DEEPEST = 8


def read_tensors(source: Any, known: Collection[str] = ()) -> dict[str, Any]:
    """The tensors of a `state_dict`, or of the file that one was written to.

    Wrappers are opened, and what all names begin with is taken off until one of those
    that are `known` appears. What is no tensor is left out, and so are numbers: counts
    of batches and of averaged models.
    """
    of = ""
    if isinstance(source, str | os.PathLike):
        of, source = f" in {source}", _read_file(Path(source))
    if not isinstance(source, Mapping):
        msg = (
            "The weights must be a state_dict (a dictionary of tensors) or the path of "
            f"one; this is a {type(source).__name__}. Of a torch module give "
            "module.state_dict()."
        )
        raise TypeError(msg)
    inside = dict(_state_dicts(source))
    if len(inside) > 1:
        msg = f"There are weights{of} under {' and under '.join(inside)}: give a dictionary or file with those alone that are meant."  # noqa: E501
        raise ValueError(msg)
    if not inside:
        msg = f"There are no tensors{of} under the names {short(list(source))}: give the entry that holds the state_dict."  # noqa: E501
        raise ValueError(msg)
    (tensors,) = inside.values()
    while not any(name in known for name in tensors):
        prefixes = {name.partition(".")[0] for name in tensors}
        if len(prefixes) > 1 or not all("." in name for name in tensors):
            break
        tensors = {name.partition(".")[2]: t for name, t in tensors.items()}
    return tensors


def _state_dicts(source, where="") -> Iterator[tuple[str, dict[str, Any]]]:
    """The dictionaries of tensors in a source, by the wrappers that they lie in."""
    inside = [
        pair
        for name in _WRAPPERS
        if isinstance(source.get(name), Mapping) and where.count("[") < _DEEPEST
        for pair in _state_dicts(source[name], f"{where}[{name!r}]")
    ]
    tensors = {
        str(name): tensor
        for name, tensor in source.items()
        if isinstance(tensor, np.ndarray | jax.Array) or hasattr(tensor, "detach")
        if len(tensor.shape)
    }
    yield from inside or ([(where, tensors)] if tensors else [])


def to_float32(name: str, tensor: Any) -> np.ndarray:
    """A finite tensor of any floating type, as an array."""
    if hasattr(tensor, "detach"):  # of torch, and NumPy knows no bfloat16
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
    array = np.asarray(tensor)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        msg = f"The tensor {name} must be of floating point; it is {array.dtype}. Quantised weights have to be dequantised first."  # noqa: E501
        raise ValueError(msg)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    wrong = array.size - int(np.isfinite(array).sum())
    if wrong:
        msg = f"The tensor {name} must be finite in float32; {wrong} of its {array.size} numbers are not. Take the weights of an earlier step."  # noqa: E501
        raise ValueError(msg)
    return array


def _read_file(path):
    """By its content: suffixes of weights are many."""
    if is_safetensors(path):
        return read_safetensors(path)[0]
    with path.open("rb") as file:
        head = file.read(2)
    if not head.startswith((b"PK", b"\x80")):
        msg = f"{path} is neither what torch.save writes nor a safetensors file: write it anew."  # noqa: E501
        raise ValueError(msg)
    return _read_torch(path)


def import_torch(purpose: str) -> Any:
    """PyTorch, which not everybody has."""
    try:
        import torch
    except ImportError as error:
        msg = f"{purpose} needs PyTorch: pip install torch, or keep the weights as .safetensors."  # noqa: E501
        raise ImportError(msg) from error
    return torch


def _read_torch(path):
    torch = import_torch(f"Reading {path}")
    try:
        # PyTorch leaves the checksums of the archive alone.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                msg = f"the checksum of {damaged} is not that of its content"
                raise zipfile.BadZipFile(msg)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy()):
            warnings.simplefilter("ignore")  # the errors say it
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file ends in whatever the part that is hit first raises.
    except Exception as error:
        foreign = re.search(r"GLOBAL (\S{1,100}) was not an allowed", str(error))
        if foreign:
            msg = (
                f"{path} holds a {foreign[1]}, and rebuilding that could run what its "
                "writer wrote. Where it comes from save the weights alone, those of an "
                f"entry: torch.save(torch.load({path.name!r}, weights_only=False)"
                "['state_dict'], 'weights.pt'), or of a module: "
                "torch.save(module.state_dict(), 'weights.pt')."
            )
        else:
            # What follows is PyTorch's advice to load it unsafely.
            said = str(error).split("WeightsUnpickler error: ")[-1].strip()
            reason = said.split(" In PyTorch")[0].split("\n")[0][:200]
            msg = f"{path} is no whole file of a state_dict ({reason or type(error).__name__}): write it anew with torch.save(model.state_dict(), path)."  # noqa: E501
        raise ValueError(msg) from error


def _numpy():
    """What rebuilds NumPy's arrays and numbers, by its older names too."""
    scalar, rebuilt = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efd"}
    return [
        *(scalar, rebuilt, np.ndarray, np.dtype, *dtypes),
        *((f, f"numpy.core.multiarray.{f.__name__}") for f in (scalar, rebuilt)),
    ]
