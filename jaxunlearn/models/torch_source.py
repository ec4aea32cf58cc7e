"""Named tensors out of a dictionary, a `.pt` file or a `.safetensors` file."""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunlearn.models.tensors import read_safetensors

# Training scripts put the weights under these, wrappers put these before every name.
_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIX = re.compile(r"(module\.|_orig_mod\.)+")


def read_tensors(source: Any) -> dict[str, Any]:
    """The tensors of a `state_dict`, or of the file that one was written to."""
    if isinstance(source, str | os.PathLike):
        source = _read_file(Path(source))
    for name in _NESTED:
        if isinstance(source, Mapping) and isinstance(source.get(name), Mapping):
            source = source[name]
    if not isinstance(source, Mapping):
        msg = (
            "The weights must be a state_dict (a dictionary of tensors) or the path of "
            f"one; this is a {type(source).__name__}. Of a torch module give "
            "module.state_dict()."
        )
        raise TypeError(msg)
    tensors = {str(name): tensor for name, tensor in source.items()}
    if all(_PREFIX.match(name) for name in tensors):
        return {_PREFIX.sub("", name, count=1): t for name, t in tensors.items()}
    return tensors


def to_float32(name: str, tensor: Any) -> np.ndarray:
    """A tensor of any floating type, as an array."""
    if hasattr(tensor, "detach"):  # of torch, and NumPy knows no bfloat16
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
    array = np.asarray(tensor)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        msg = f"The tensor {name} must be of floating point; it is {array.dtype}. Quantised weights have to be dequantised first."  # noqa: E501
        raise ValueError(msg)
    return array.astype(np.float32)


def _read_file(path):
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if path.suffix not in (".pt", ".pth"):
        msg = f"{path} must end in .pt, .pth, .safetensors."
        raise ValueError(msg)
    if not path.is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    return _read_torch(path)


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        msg = f'Reading {path} needs PyTorch: pip install "jaxunlearn[torch]", or save the weights as .safetensors.'  # noqa: E501
        raise ImportError(msg) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"{path} holds more than tensors, and reading it could run what its writer "
            "wrote. Where it comes from export the state_dict alone: "
            "torch.save(model.state_dict(), path)."
        )
        raise ValueError(msg) from error
    # A damaged file ends in whatever the part that is hit first raises.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        msg = f"{path} is no whole file of a state_dict ({reason}): write it anew."
        raise ValueError(msg) from error
