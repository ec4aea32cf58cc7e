"""Weights from PyTorch, and back."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze

from jaxunlearn.models.shapes import nested, variable_shapes
from jaxunlearn.models.tensors import check_tensors, named, shown
from jaxunlearn.models.torch_maps import fitting_sides, flattened
from jaxunlearn.models.torch_names import namings, shown_fields
from jaxunlearn.models.torch_source import read_tensors, to_float32

Shape = tuple[int, ...]

# Our name of a leaf -> theirs, in their order.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

# In which order PyTorch takes our axes, by how many there are.
_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}


class _Leaf(NamedTuple):
    """A leaf of ours, the collection in its path, and PyTorch's name for it."""

    path: str
    name: str
    shape: Shape
    kernel: Shape  # of a matrix that meets a flattened map (h, w, c, out), else `shape`

    @property
    def axes(self) -> Shape:
        """Ours in their order."""
        return _AXES.get(len(self.kernel), tuple(range(len(self.kernel))))

    @property
    def torch_shape(self) -> Shape:
        """Of the same leaf in PyTorch, where it is flattened again."""
        turned = tuple(self.kernel[axis] for axis in self.axes)
        return turned if self.kernel == self.shape else (turned[0], self.shape[0])

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Their array in our order."""
        turned = array.reshape([self.kernel[axis] for axis in self.axes])
        return turned.transpose(np.argsort(self.axes)).reshape(self.shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array in their order."""
        return array.reshape(self.kernel).transpose(self.axes).reshape(self.torch_shape)


def from_torch(
    model: nn.Module, source: Any, *, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The variables of a network, read from weights of its PyTorch twin.

    A kernel `[out, in, h, w]` becomes `[h, w, in, out]`, a matrix is transposed, and
    where it meets a flattened map its rows go from channels first to channels last.
    What was float16 or bfloat16 is float32 afterwards.

    ResNets and VGGs are read in torchvision's naming or that of the code published
    with UNSC (arXiv 2404.13588), All-CNN and AlexNet in the latter, ViTs in timm's;
    which one it is the names tell. LeNet-5 and the small network have none.

    Args:
      model: made by `models.create`, with the options that the weights were made with.
      source: a `state_dict` of tensors or arrays, or the path of one that `torch.save`
        or safetensors (needs no PyTorch) wrote, whatever it is called. It may lie under
        `state_dict`, `model`, `net`, `ema` and the like, beside other things; a prefix
        that all names share, such as `module.`, is taken off.
      image_shape: (h, w, c).

    Returns:
      `{"params": ..., "batch_stats": ...}`, the latter where there is BatchNorm.

    Raises:
      TypeError: the model has no naming, or the source is neither of the two.
      ValueError: a tensor is missing, of the wrong shape, not of floating point, not
        finite, or none of the network's; or there are weights in two places; or the
        file is damaged, or holds objects that only code of its writer can rebuild.
      FileNotFoundError: there is no such file.
      ImportError: a `.pt` file needs PyTorch.

    >>> import jax
    >>> from jaxunlearn import models
    >>> model = models.create("allcnn", num_classes=10, width=0.1)
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    >>> variables = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
    >>> weights = to_torch(model, variables)
    >>> weights["features.0.0.weight"].shape
    (9, 3, 3, 3)
    >>> again = from_torch(model, weights, image_shape=(8, 8, 3))
    >>> again["params"]["conv0"]["kernel"].shape
    (3, 3, 3, 9)
    """
    known = namings(model)
    of = f" in {source}" if isinstance(source, str | os.PathLike) else ""
    shapes = _shapes(model, image_shape)
    maps = flattened(model, image_shape[:2])
    candidates = {n: _leaves(shapes, layers, maps) for n, layers in known.items()}
    tensors = read_tensors(source, {x.name for c in candidates.values() for x in c})
    # That with the most names in common.
    naming, leaves = max(
        candidates.items(), key=lambda item: sum(x.name in tensors for x in item[1])
    )
    stored = {
        name: tuple(np.shape(tensor))
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    _check_channels(leaves, stored, image_shape[2], of)
    check_tensors(
        f"The tensors{of} are not those of this {type(model).__name__} in the naming of {naming}",  # noqa: E501
        {name: shown(shape) for name, shape in stored.items()},
        {leaf.name: shown(leaf.torch_shape) for leaf in leaves},
        _advice(model, stored),
    )
    arrays = {}
    for leaf in leaves:
        array = leaf.from_torch(to_float32(f"{leaf.name}{of}", tensors[leaf.name]))
        # A copy: an array of JAX may otherwise share memory with the source.
        arrays[leaf.path] = jnp.array(array)
    return nested(arrays)


def to_torch(
    model: nn.Module,
    variables: Any,
    *,
    naming: str | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> dict[str, np.ndarray]:
    """The way back: a `state_dict` of arrays, as `load_state_dict` wants it.

    Turn the arrays into tensors with `torch.from_numpy`, or write them with
    `safetensors.numpy.save_file`.

    Args:
      model: the network.
      variables: its variables.
      naming: "torchvision", "unsc" or "timm", see `from_torch`; None is "torchvision"
        for ResNets and VGGs, and otherwise the one that there is.
      image_shape: (h, w, c); only AlexNet asks for it, where images are not square.

    Returns:
      A name for each array, `num_batches_tracked` (0) included.

    Raises:
      TypeError: the model has no naming, or `variables` are no dictionary.
      ValueError: the model is not called so, or the variables are not those of the
        model.
    """
    known = namings(model)
    naming = next(iter(known)) if naming is None else naming
    if naming not in known:
        msg = f"naming of a {type(model).__name__} like this one must be {' or '.join(known)}; it is {naming!r}."  # noqa: E501
        raise ValueError(msg)
    values = _flat(variables)
    stored = {path: tuple(np.shape(value)) for path, value in values.items()}
    if image_shape is None:
        kernels = (stored.get(f"params/{layer}/kernel", ()) for layer in known[naming])
        # Of a convolution [h, w, in, out], if there is any.
        channels = next((shape[2] for shape in kernels if len(shape) == 4), 1)
        image_shape = (*fitting_sides(model, stored), channels)
    shapes = _shapes(model, image_shape)
    leaves = _leaves(shapes, known[naming], flattened(model, image_shape[:2]))
    check_tensors(
        f"The variables are not those of this {type(model).__name__}",
        {path: shown(shape) for path, shape in stored.items()},
        {path: shown(shape) for path, shape in shapes.items()},
        "Give those that its init, from_torch or thaw returned.",
    )
    arrays = {}
    for leaf in leaves:
        # A copy, which PyTorch may write into.
        array = np.asarray(values[leaf.path], np.float32)
        arrays[leaf.name] = np.array(leaf.to_torch(array), order="C")
        if leaf.path.endswith("/var"):
            count = leaf.name.replace("running_var", "num_batches_tracked")
            arrays[count] = np.zeros((), np.int64)
    return arrays


def _shapes(model, image_shape) -> dict[str, Shape]:
    shapes = variable_shapes(model, image_shape)
    return {path: leaf.shape for path, leaf in shapes.items()}


def _leaves(shapes, layers: dict[str, str], maps) -> list[_Leaf]:
    """The model's variables, in PyTorch's order."""
    leaves = []
    for layer, name in layers.items():
        # A leaf without a layer, as tokens are, comes by itself.
        for ours, theirs in {"": "", **_LEAVES}.items():
            collection = "batch_stats" if ours in ("mean", "var") else "params"
            path = "/".join(filter(None, (collection, layer, ours)))
            if path not in shapes:
                continue
            shape, flat = shapes[path], maps.get(layer) if ours == "kernel" else None
            kernel = shape if flat is None else (*flat, shape[-1])
            leaves.append(_Leaf(path, f"{name}.{theirs}".rstrip("."), shape, kernel))
    return leaves


def _check_channels(leaves, stored, channels, of):
    """Refuse weights of a first convolution that wants other images."""
    first = next(leaf for leaf in leaves if len(leaf.shape) == 4)
    shape = stored.get(first.name, ())
    if len(shape) == 4 and shape[1] != channels:
        cure = ""
        if (channels, shape[1]) == (1, 3):
            cure = ": numpy.repeat(images, 3, axis=-1) makes them of grey ones"
        msg = (
            f"By image_shape the images have {channels} channels, and the weights are "
            f"for images of {shape[1]} ({first.name}{of} is {shown(shape)}): give "
            f"images of {shape[1]} channels{cure}."
        )
        raise ValueError(msg)


def _advice(model, stored):
    """What to do."""
    fields = shown_fields(model, stored).items()
    other = [f"{n} should be {v!r}" for n, v in fields if getattr(model, n) != v]
    if other:
        return f"By the weights' shapes {', '.join(other)}."
    return (
        "Give the model the options that they were made with, and image_shape as "
        "(h, w, c)."
    )


def _flat(variables: Any) -> dict[str, Any]:
    """Leaves by path, whatever the dictionaries and the boxes about them are."""
    if not isinstance(variables, Mapping):
        msg = f"variables must be a dictionary, as model.init returns it; this is a {type(variables).__name__}. Of a classifier give thaw(classifier)."  # noqa: E501
        raise TypeError(msg)
    return named(nn.meta.unbox(unfreeze(variables)))
