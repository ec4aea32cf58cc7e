"""A table of tiny networks, each with its NumPy twin (see `oracles`).

Parameters are drawn with eight bits, so that one twin serves every precision and casts
of a leaf lose nothing; images with all the bits of float32.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from oracles import Tape, attention, double, patches

import jaxunlearn as ju


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its twin, and the leaves that must stay frozen.

    Attributes:
      name: of the test.
      model: makes the linen or NNX module.
      twin: `(tape, images) -> logits` in NumPy.
      image_shape: `(h, w, c)`.
      frozen: leaves without an input, each with a word of the reason's sentence.
      state: the linen module's other collections.
      error: what the logits' relative error may be in float64, where some layer
        computes in less whatever it is given; and that of the rows.
      branches: whether rows of branches not taken stand among `layer_inputs`, as zeros.
      own_order: whether the fan-in is expected in the order of the leaf's elements.
    """

    name: str
    model: Callable[[], Any]
    twin: Callable[[Tape, np.ndarray], np.ndarray] | None = None
    image_shape: tuple[int, ...] = (5, 4, 2)
    frozen: dict[str, str] = dataclasses.field(default_factory=dict)
    state: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: tuple[float, float] = (1e-12, 1e-12)
    branches: bool = False
    own_order: bool = True

    def images(self, n, dtype=np.float32, seed=1) -> jax.Array:
        rng = np.random.default_rng(seed)
        images = rng.normal(size=(n, *self.image_shape)).astype(np.float32)
        return jnp.asarray(images, dtype)

    def classifier(self, dtype=np.float32, seed=0) -> ju.Classifier:
        model, rng = self.model(), np.random.default_rng(seed)

        def draw(leaf):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            spread = math.sqrt(max(math.prod(leaf.shape[:-1]), 1))
            values = rng.normal(size=leaf.shape) / spread
            return jnp.asarray(values.astype(ml_dtypes.bfloat16).astype(dtype))

        if isinstance(model, nn.Module):
            images = jnp.zeros((1, *self.image_shape))
            keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
            shapes = jax.eval_shape(model.init, keys, images)["params"]
            state = jax.tree.map(lambda leaf: _in_precision(leaf, dtype), self.state)
            variables = {"params": jax.tree.map(draw, shapes), **state}
            return ju.freeze(model, variables)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        rest = jax.tree.map(lambda leaf: _in_precision(leaf, dtype), rest)
        return ju.freeze(nnx.merge(graph, jax.tree.map(draw, params), rest))

    def run_twin(self, classifier, images) -> tuple[Tape, np.ndarray]:
        tape = Tape(classifier.params)
        logits = self.twin(tape, np.asarray(images).astype(np.float64))
        return tape, logits


@dataclasses.dataclass(frozen=True)
class Together(ju.Network):
    """Several networks side by side on the first pixels of one image: compiled once.

    `members` are `(name, network, image_shape)`; params and state are keyed by name.
    """

    members: tuple[tuple[str, ju.Network, tuple[int, ...]], ...]

    def apply(self, params, state, images):
        return jnp.concatenate(
            [
                network.apply(params[name], state[name], first_pixels(images, shape))
                .astype(images.dtype)
                .reshape(len(images), -1)
                for name, network, shape in self.members
            ],
            axis=1,
        )


def first_pixels(images, shape):
    return images.reshape(len(images), -1)[:, : math.prod(shape)].reshape(-1, *shape)


def together(cases, dtype) -> ju.Classifier:
    each = {case.name: case.classifier(dtype) for case in cases}
    members = tuple(
        (case.name, each[case.name].network, case.image_shape) for case in cases
    )
    return ju.Classifier(
        params={name: classifier.params for name, classifier in each.items()},
        state={name: classifier.state for name, classifier in each.items()},
        preprocess=None,
        network=Together(members),
    )


@contextlib.contextmanager
def quick_compilation():
    """Without XLA's optimisations: a third less time where programs run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def flat(x):
    """`[n, ...]` as `[n, d]`, without images too."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _in_precision(leaf, dtype):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(leaf, dtype)
    return leaf


# Frames: one layer between the images and the logits.


class Frame(nn.Module):
    layer: nn.Module
    shape: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, images):
        n = images.shape[0]
        x = images if self.shape is None else images.reshape(n, *self.shape)
        return flat(self.layer(x))


class NNXFrame(nnx.Module):
    def __init__(self, layer, shape=None):
        self.layer = layer
        self.shape = shape

    def __call__(self, images):
        n = images.shape[0]
        x = images if self.shape is None else images.reshape(n, *self.shape)
        return flat(self.layer(x))


def framed(name, layers, twin, image_shape=(5, 4, 2), shape=None, **options):
    """A case for each of `layers = {"linen": ..., "nnx": ...}`, with one twin."""

    def whole(tape, images):
        x = images if shape is None else images.reshape(len(images), *shape)
        return flat(twin(tape, x))

    def model(flavour, layer):
        if flavour == "nnx":
            return lambda: nnx_module(lambda rngs: NNXFrame(layer(rngs), shape))
        return lambda: Frame(layer(), shape)

    options.setdefault("frozen", {"layer/bias": "bias"})
    return [
        Case(f"{flavour}: {name}", model(flavour, layer), whole, image_shape, **options)
        for flavour, layer in layers.items()
    ]


def nnx_module(build):
    """An NNX module whose initialisers are not run, with ones for their values."""
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    return nnx.merge(graph, jax.tree.map(_blank, state))


def _blank(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.ones(leaf.shape, leaf.dtype)


def convolution(name, image_shape, shape=None, flavours=("linen", "nnx"), **spec):
    features, size = spec["features"], spec["kernel_size"]
    options = {k: v for k, v in spec.items() if k not in ("features", "kernel_size")}
    channels = (shape or image_shape)[-1]
    layers = {
        "linen": lambda: nn.Conv(features, size, **options),
        "nnx": lambda rngs: nnx.Conv(channels, features, size, **options, rngs=rngs),
    }
    return framed(
        name,
        {flavour: layers[flavour] for flavour in flavours},
        lambda tape, x: tape.conv("layer/kernel", x, **spec),
        image_shape,
        shape,
    )


def transposed(name, image_shape, flavours=("linen", "nnx"), **spec):
    """A flipped kernel is read from its end: the fan-in's order is the product's."""
    features, size = spec["features"], spec["kernel_size"]
    options = {k: v for k, v in spec.items() if k not in ("features", "kernel_size")}
    layers = {
        "linen": lambda: nn.ConvTranspose(features, size, **options),
        "nnx": lambda rngs: nnx.ConvTranspose(
            image_shape[-1], features, size, **options, rngs=rngs
        ),
    }
    return framed(
        name,
        {flavour: layers[flavour] for flavour in flavours},
        lambda tape, x: tape.conv_transpose("layer/kernel", x, **spec),
        image_shape,
        own_order=not spec.get("transpose_kernel", False),
    )


CONVOLUTIONS = [
    *convolution("conv 3x3", (5, 4, 2), features=3, kernel_size=(3, 3)),
    *convolution("conv 3x3 valid", (5, 6, 2), features=2, kernel_size=(3, 3),
                 padding="VALID", flavours=("linen",)),
    *convolution("conv with stride 2", (6, 5, 2), features=3, kernel_size=(3, 3),
                 strides=2),
    *convolution("conv with strides 2 and 3, kernel 3x2, valid", (7, 6, 2), features=3,
                 kernel_size=(3, 2), strides=(2, 3), padding="VALID"),
    *convolution("conv with stride 3 and unequal padding", (7, 5, 2), features=2,
                 kernel_size=(2, 3), strides=3, padding=((1, 0), (2, 1))),
    *convolution("conv with unequal padding", (4, 5, 2), features=2,
                 kernel_size=(2, 3), padding=((1, 0), (0, 3)), flavours=("linen",)),
    # XLA for CPUs reads beyond the image here in float32 (jax 0.10, not 0.12).
    *convolution("conv with negative padding", (5, 6, 2), features=2,
                 kernel_size=(2, 2), padding=((-1, 1), (0, -2)), flavours=("linen",)),
    *convolution("conv as large as the image", (3, 4, 2), features=5,
                 kernel_size=(3, 4), padding="VALID", flavours=("linen",)),
    *convolution("conv larger than the image", (2, 3, 2), features=2,
                 kernel_size=(5, 4), flavours=("linen",)),
    *convolution("circular conv", (5, 4, 2), features=2, kernel_size=(3, 3),
                 padding="CIRCULAR"),
    *convolution("circular conv with even kernel and stride", (6, 4, 2), features=2,
                 kernel_size=(4, 2), strides=(2, 1), padding="CIRCULAR",
                 flavours=("linen",)),
    *convolution("reflecting conv", (5, 4, 2), features=2, kernel_size=(3, 4),
                 padding="REFLECT"),
    *convolution("causal conv", (3, 4, 2), (12, 2), features=3, kernel_size=(3,),
                 kernel_dilation=2, padding="CAUSAL"),
    *convolution("conv over three axes", (4, 3, 6), (4, 3, 3, 2), features=2,
                 kernel_size=(2, 2, 3), strides=(2, 1, 1)),
    *convolution("dilated conv", (6, 7, 2), features=2, kernel_size=(3, 2),
                 kernel_dilation=(2, 3)),
    *convolution("dilated conv with stride", (7, 6, 2), features=2, kernel_size=(2, 3),
                 kernel_dilation=2, strides=2, padding="VALID", flavours=("linen",)),
    *convolution("conv of a dilated input", (3, 4, 2), features=2, kernel_size=(3, 2),
                 input_dilation=(2, 3), padding=((0, 0), (0, 0))),
    *convolution("conv of a dilated input, everything at once", (4, 3, 4), features=4,
                 kernel_size=(2, 3), input_dilation=2, kernel_dilation=(2, 1),
                 strides=(1, 2), padding=((1, 2), (0, 1)), feature_group_count=2,
                 flavours=("linen",)),
    *convolution("conv in two groups", (4, 5, 4), features=6, kernel_size=(3, 3),
                 feature_group_count=2),
    *convolution("conv in two groups with stride", (5, 5, 4), features=4,
                 kernel_size=(2, 3), strides=2, feature_group_count=2,
                 flavours=("linen",)),
    *convolution("depthwise conv", (4, 5, 3), features=3, kernel_size=(3, 3),
                 feature_group_count=3),
    *convolution("depthwise conv, two outputs a channel", (4, 5, 3), features=6,
                 kernel_size=(2, 2), strides=2, feature_group_count=3,
                 flavours=("linen",)),
    *convolution("conv 1x1", (3, 4, 3), features=2, kernel_size=(1, 1),
                 flavours=("linen",)),
    *convolution("conv 1x1 with stride", (5, 4, 3), features=2, kernel_size=(1, 1),
                 strides=2),
    *transposed("transposed conv", (4, 3, 2), features=3, kernel_size=(3, 3)),
    *transposed("transposed conv with strides", (4, 3, 2), features=3,
                kernel_size=(3, 2), strides=(2, 3), padding="VALID"),
    *transposed("transposed conv, kernel stored transposed", (4, 3, 2), features=3,
                kernel_size=(3, 2), strides=(2, 1), transpose_kernel=True),
    *transposed("dilated transposed conv", (4, 3, 2), features=2, kernel_size=(2, 3),
                strides=(3, 2), kernel_dilation=(1, 2), flavours=("linen",)),
    *transposed("circular transposed conv", (3, 4, 2), features=2, kernel_size=(3, 3),
                strides=(2, 2), padding="CIRCULAR", transpose_kernel=True,
                flavours=("linen",)),
]  # fmt: skip


# Dense layers.


def _batched_dense(tape, x):
    """`[n, t, g, d]` against a kernel `[g, d, o]`."""
    rows = x.transpose(2, 0, 1, 3).reshape(x.shape[2], -1, x.shape[3])
    y = tape.product("layer/kernel", rows, tape["layer/kernel"])
    y = y.reshape(x.shape[2], *x.shape[:2], -1)  # [g, n, t, o]
    return y + tape["layer/bias"][:, None, None]


class LeadingBatch(nn.Module):
    """Brings the groups to the front, where `DenseGeneral` wants its batch axes."""

    @nn.compact
    def __call__(self, images):
        x = images.transpose(2, 0, 1, 3)
        dense = nn.DenseGeneral(3, axis=-1, batch_dims=(0,), name="layer")
        return dense(x).transpose(1, 0, 2, 3).reshape(images.shape[0], -1)


class NNXLeadingBatch(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.LinearGeneral(2, 3, batch_axis={0: 4}, rngs=rngs)

    def __call__(self, images):
        x = images.transpose(2, 0, 1, 3)
        return self.layer(x).transpose(1, 0, 2, 3).reshape(images.shape[0], -1)


def _leading_batch(tape, images):
    y = _batched_dense(tape, images)
    return y.transpose(1, 0, 2, 3).reshape(len(images), -1)


def _general_of_two_axes(tape, x):
    # Flax sorts the contracted axes: the kernel is [5, 2, 3, 2].
    return tape.dense("layer/kernel", x.transpose(0, 2, 1, 3), contracted=2)


def _einsum_heads(tape, x):
    # "nhd,dhf->nhf": the batch axis stands in the middle of the kernel.
    matrix = tape["layer/kernel"].transpose(1, 0, 2)
    y = tape.product("layer/kernel", x.transpose(1, 0, 2), matrix)
    return y.transpose(1, 0, 2) + tape["layer/bias"]


def _einsum_middle(tape, x):
    # "nta,hab->nthb": the contracted axis stands in the middle of the kernel.
    kernel = tape["layer/kernel"]
    rows, matrix = x.reshape(-1, 2), kernel.transpose(1, 0, 2).reshape(2, -1)
    y = tape.product("layer/kernel", rows, matrix)
    return y.reshape(*x.shape[:2], *kernel.shape[::2]) + tape["layer/bias"]


def _local(tape, x):
    """An unshared convolution: every position its own kernel, channels before taps."""
    kernel = tape["layer/kernel"]  # [h, w, c * taps, o]
    taps = patches(x, (2, 3), (1, 1), [(0, 0)] * 2, (1, 1), (1, 1))
    rows = np.swapaxes(taps, -1, -2).reshape(len(x), -1, kernel.shape[2])
    matrix = kernel.reshape(-1, *kernel.shape[2:])
    y = tape.product("layer/kernel", rows.transpose(1, 0, 2), matrix)
    return y.transpose(1, 0, 2) + tape["layer/bias"].reshape(1, *matrix.shape[::2])


def _one_device(axis):
    return jax.make_mesh((1,), (axis,), (jax.sharding.AxisType.Auto,))


def _bfloat16(x):
    return np.asarray(x, ml_dtypes.bfloat16).astype(np.float64)


DENSE = [
    *framed(
        "dense",
        {
            "linen": lambda: nn.Dense(3),
            "nnx": lambda rngs: nnx.Linear(40, 3, rngs=rngs),
        },
        lambda tape, x: tape.dense("layer/kernel", x),
        shape=(40,),
    ),
    *framed(
        "dense at every position",
        {"linen": lambda: nn.Dense(3), "nnx": lambda rngs: nnx.Linear(2, 3, rngs=rngs)},
        lambda tape, x: tape.dense("layer/kernel", x),
    ),
    *framed(
        "dense over two axes",
        {
            "linen": lambda: nn.DenseGeneral((3, 2), axis=(-1, 1)),
            "nnx": lambda rngs: nnx.LinearGeneral(
                (5, 2), (3, 2), axis=(1, -1), rngs=rngs
            ),
        },
        _general_of_two_axes,
    ),
    Case("linen: dense with a batch axis", LeadingBatch, _leading_batch,
         frozen={"layer/bias": "bias"}),
    Case("nnx: dense with a batch axis", lambda: nnx_module(NNXLeadingBatch),
         _leading_batch, frozen={"layer/bias": "bias"}),
    *framed(
        "einsum with a batch axis in the kernel",
        {
            "linen": lambda: nn.Einsum((4, 5, 3), "nhd,dhf->nhf"),
            "nnx": lambda rngs: nnx.Einsum(
                "nhd,dhf->nhf", (4, 5, 3), (5, 3), rngs=rngs
            ),
        },
        _einsum_heads,
        (5, 4, 1),
        (5, 4),
    ),
    *framed(
        "einsum that contracts a middle axis",
        {
            "linen": lambda: nn.Einsum((3, 2, 4), "nta,hab->nthb"),
            "nnx": lambda rngs: nnx.Einsum(
                "nta,hab->nthb", (3, 2, 4), (3, 4), rngs=rngs
            ),
        },
        _einsum_middle,
        (5, 2, 2),
        (10, 2),
    ),
    *framed(
        "unshared conv",
        {"linen": lambda: nn.ConvLocal(2, (2, 3), padding="VALID")},
        _local,
        (3, 4, 2),
    ),
    *framed(
        "dense in bfloat16",
        {
            "linen": lambda: nn.Dense(3, dtype=jnp.bfloat16),
            "nnx": lambda rngs: nnx.Linear(2, 3, dtype=jnp.bfloat16, rngs=rngs),
        },
        lambda tape, x: tape.dense("layer/kernel", _bfloat16(x)),
        error=(2e-2, 1e-6),
    ),
    *framed(
        "conv in bfloat16",
        {"linen": lambda: nn.Conv(3, (3, 3), dtype=jnp.bfloat16)},
        lambda tape, x: tape.conv(
            "layer/kernel", _bfloat16(x), features=3, kernel_size=(3, 3)
        ),
        error=(2e-2, 1e-6),
    ),
    *framed(
        "partitioned dense",
        {
            "linen": lambda: nn.Dense(
                3,
                kernel_init=nn.with_partitioning(nn.initializers.zeros, ("in", "out")),
            ),
            "nnx": lambda rngs: nnx.Linear(
                2,
                3,
                kernel_init=nnx.with_partitioning(
                    nnx.initializers.zeros, (None, "out"), mesh=_one_device("out")
                ),
                rngs=rngs,
            ),
        },
        lambda tape, x: tape.dense("layer/kernel", x),
    ),
]  # fmt: skip


# Networks of several layers.


class Attention(nn.Module):
    """Attention of all positions over the first five; then a head."""

    @nn.compact
    def __call__(self, images):
        x = images.reshape(images.shape[0], -1, images.shape[-1])
        layer = nn.MultiHeadDotProductAttention(2, qkv_features=4, out_features=3)
        return layer.copy(name="layer")(x, x[:, :5]).reshape(images.shape[0], -1)


class NNXAttention(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.MultiHeadAttention(
            2, 3, qkv_features=4, out_features=3, decode=False, rngs=rngs
        )

    def __call__(self, images):
        x = images.reshape(images.shape[0], -1, images.shape[-1])
        return self.layer(x, x[:, :5]).reshape(images.shape[0], -1)


def _attention(tape, images):
    x = images.reshape(len(images), -1, images.shape[-1])
    return attention(tape, "layer", x, x[:, :5]).reshape(len(images), -1)


class ConvNet(nn.Module):
    """Convolution, BatchNorm with stored statistics, pooling, dropout, head."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(3, (3, 3), strides=2, use_bias=False, name="conv")(images)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Conv(4, (2, 2), name="last")(nn.relu(x))
        x = nn.avg_pool(jnp.tanh(x), (2, 2), strides=(1, 1)).reshape(len(images), -1)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="head")(x)


class NNXConvNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.last = nnx.Conv(3, 4, (2, 2), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.conv(images))
        x = jnp.tanh(self.last(nnx.relu(x)))
        x = nnx.avg_pool(x, (2, 2), strides=(1, 1)).reshape(len(images), -1)
        return self.head(self.dropout(x))


def _conv_net(mean, var):
    def twin(tape, images):
        x = tape.conv("conv/kernel", images, features=3, kernel_size=(3, 3), strides=2)
        x = (x - mean) / np.sqrt(double(var) + 1e-5)
        x = np.maximum(x * tape["norm/scale"] + tape["norm/bias"], 0)
        x = np.tanh(tape.conv("last/kernel", x, features=4, kernel_size=(2, 2)))
        windows = [x[:, a : a + 2, b : b + 1] for a in (0, 1) for b in (0, 1)]
        return tape.dense("head/kernel", (sum(windows) / 4).reshape(len(x), -1))

    return twin


_STATISTICS = {
    "mean": np.asarray([0.25, -0.5, 0.125], np.float32),
    "var": np.asarray([0.5, 2.0, 1.0], np.float32),
}
_NORM = {
    "norm/scale": "scale",
    "norm/bias": "bias",
    "last/bias": "bias",
    "head/bias": "bias",
}


class Twice(nn.Module):
    """One convolution and one dense layer, each used at two places."""

    remat: bool = False

    @nn.compact
    def __call__(self, images):
        conv_class = nn.remat(nn.Conv) if self.remat else nn.Conv
        dense_class = nn.remat(nn.Dense) if self.remat else nn.Dense
        conv = conv_class(2, (3, 2), strides=(2, 1), name="conv")
        dense = dense_class(2, name="dense")
        x = jnp.tanh(conv(jnp.tanh(conv(images))))
        return dense(jnp.tanh(dense(x))).reshape(images.shape[0], -1)


class NNXTwice(nnx.Module):
    def __init__(self, rngs, remat=False):
        self.conv = nnx.Conv(2, 2, (3, 2), strides=(2, 1), rngs=rngs)
        self.dense = nnx.Linear(2, 2, rngs=rngs)
        self.remat = remat

    def __call__(self, images):
        def convolve(layer, x):
            return jnp.tanh(layer(x))

        if self.remat:
            convolve = nnx.remat(convolve)
        x = convolve(self.conv, convolve(self.conv, images))
        return self.dense(jnp.tanh(self.dense(x))).reshape(images.shape[0], -1)


def _twice(tape, x):
    for _ in range(2):
        x = np.tanh(
            tape.conv("conv/kernel", x, features=2, kernel_size=(3, 2), strides=(2, 1))
        )
    x = tape.dense("dense/kernel", np.tanh(tape.dense("dense/kernel", x)))
    return x.reshape(len(x), -1)


class Block(nn.Module):
    kind: str = "dense"

    @nn.compact
    def __call__(self, x, _=None):
        if self.kind == "dense":
            layer = nn.Dense(x.shape[-1], name="layer")
        else:
            layer = nn.Conv(x.shape[-1], (2, 2), feature_group_count=2, name="layer")
        return jnp.tanh(layer(x)), None


class Scanned(nn.Module):
    """A stack of three blocks, one scan."""

    kind: str = "dense"
    axis: int | None = 0  # None: the weight is shared
    reverse: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, images):
        block = nn.remat(Block) if self.remat else Block
        shared = self.axis is None
        scan = nn.scan(
            block,
            variable_axes={} if shared else {"params": self.axis},
            variable_broadcast="params" if shared else False,
            split_rngs={"params": not shared},
            length=3,
            reverse=self.reverse,
        )
        x, _ = scan(self.kind, name="blocks")(images, None)
        return x.reshape(images.shape[0], -1)


class Carry(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(x.shape[-1], name="layer")(x))


class NestedScan(nn.Module):
    """Two scans of two, rematerialised: Flax's own `remat_scan`."""

    @nn.compact
    def __call__(self, images):
        x = nn.remat_scan(Carry, lengths=(2, 3))(name="blocks")(images)
        return x.reshape(images.shape[0], -1)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.layer(x))


class NNXScanned(nnx.Module):
    def __init__(self, rngs, axis=0):
        build = nnx.vmap(NNXBlock, out_axes=axis)
        self.blocks = nnx.split_rngs(splits=3)(build)(rngs)
        self.axis = axis

    def __call__(self, images):
        def step(block, x):
            return block(x)

        scan = nnx.scan(step, in_axes=(self.axis, nnx.Carry), out_axes=nnx.Carry)
        return scan(self.blocks, images).reshape(images.shape[0], -1)


def _stack(order=(0, 1, 2), axis=0):
    def twin(tape, x):
        path = "blocks/layer/kernel"
        kernel = np.moveaxis(tape[path], axis, 0)
        bias = np.moveaxis(tape["blocks/layer/bias"], axis, 0)
        for i in order:
            rows = x.reshape(-1, 2)
            y = tape.product(path, rows[None], kernel[i][None], (i,))[0]
            x = np.tanh(y.reshape(x.shape) + bias[i])
        return x.reshape(len(x), -1)

    return twin


def _conv_stack(tape, x):
    for i in range(3):
        spec = {"features": 4, "kernel_size": (2, 2), "feature_group_count": 2}
        x = np.tanh(tape.conv("blocks/layer/kernel", x, **spec, at=(i,)))
    return x.reshape(len(x), -1)


def _shared_stack(tape, x):
    for _ in range(3):
        x = np.tanh(tape.dense("blocks/layer/kernel", x))
    return x.reshape(len(x), -1)


def _nested_stack(tape, x):
    path = "blocks/layer/kernel"
    for i in range(2):
        for j in range(3):
            rows = x.reshape(1, -1, 2)
            y = tape.product(path, rows, tape[path][i, j][None], (i, j))
            x = np.tanh(y.reshape(x.shape) + tape["blocks/layer/bias"][i, j])
    return x.reshape(len(x), -1)


class Recurrent(nn.Module):
    """A recurrent cell over the rows of the image: its weights are scan constants.

    The first input of `h` is zero.
    """

    @nn.compact
    def __call__(self, images):
        x = images.reshape(images.shape[0], images.shape[1], -1)
        cell = nn.SimpleCell(3, carry_init=lambda key, shape, _: jnp.zeros(shape))
        return nn.RNN(cell, name="rnn")(x).reshape(images.shape[0], -1)


class NNXRecurrent(nnx.Module):
    def __init__(self, rngs):
        cell = nnx.SimpleCell(4, 3, rngs=rngs)
        self.rnn = nnx.RNN(cell)

    def __call__(self, images):
        x = images.reshape(images.shape[0], images.shape[1], -1)
        return self.rnn(x).reshape(images.shape[0], -1)


def _recurrent(into, across):
    def twin(tape, images):
        x = images.reshape(len(images), images.shape[1], -1)
        h, outputs = np.zeros((len(images), 3)), []
        for t in range(x.shape[1]):
            h = np.tanh(tape.dense(into, x[:, t]) + tape.dense(across, h))
            outputs.append(h)
        return np.stack(outputs, 1).reshape(len(images), -1)

    return twin


class NNXLoRA(nnx.Module):
    """Low-rank adapters that are not merged: three products, three inputs."""

    def __init__(self, rngs):
        self.layer = nnx.LoRALinear(2, 3, lora_rank=2, use_bias=False, rngs=rngs)

    def __call__(self, images):
        return self.layer(images).reshape(images.shape[0], -1)


def _lora(tape, x):
    low = tape.dense("layer/lora/lora_a", x)
    y = tape.dense("layer/kernel", x) + tape.dense("layer/lora/lora_b", low)
    return y.reshape(len(x), -1)


_BLOCKS = {"blocks/layer/bias": "bias"}
_TWICE = {"conv/bias": "bias", "dense/bias": "bias"}
_HEADS = {f"layer/{name}/bias": "bias" for name in ("query", "key", "value", "out")}

NETWORKS = [
    Case("linen: attention", Attention, _attention, (3, 3, 3), _HEADS),
    Case("nnx: attention", lambda: nnx_module(NNXAttention), _attention, (3, 3, 3),
         _HEADS, error=(1e-6, 1e-6)),  # JAX's own attention: softmax in float32
    Case("linen: conv net", ConvNet, _conv_net(**_STATISTICS), (5, 4, 2), _NORM,
         state={"batch_stats": {"norm": _STATISTICS}}),
    Case("nnx: conv net", lambda: nnx_module(NNXConvNet), _conv_net(1.0, 1.0),
         (5, 4, 2), _NORM),
    Case("linen: layers used twice", Twice, _twice, (5, 4, 2), _TWICE),
    Case("nnx: layers used twice", lambda: nnx_module(NNXTwice), _twice, (5, 4, 2),
         _TWICE),
    Case("linen: rematerialised layers used twice", lambda: Twice(remat=True), _twice,
         (5, 4, 2), _TWICE),
    Case("nnx: rematerialised layers used twice",
         lambda: nnx_module(lambda rngs: NNXTwice(rngs, remat=True)), _twice,
         (5, 4, 2), _TWICE),
    Case("linen: scanned layers", Scanned, _stack(), (3, 2, 2), _BLOCKS),
    Case("nnx: scanned layers", lambda: nnx_module(NNXScanned), _stack(), (3, 2, 2),
         _BLOCKS),
    Case("linen: rematerialised layers scanned backwards",
         lambda: Scanned(reverse=True, remat=True), _stack((2, 1, 0)), (3, 2, 2),
         _BLOCKS),
    Case("linen: layers scanned over the second axis", lambda: Scanned(axis=1),
         _stack(axis=1), (3, 2, 2), _BLOCKS),
    Case("nnx: layers scanned over the second axis",
         lambda: nnx_module(lambda rngs: NNXScanned(rngs, axis=1)), _stack(axis=1),
         (3, 2, 2), _BLOCKS),
    Case("linen: scanned grouped convs", lambda: Scanned(kind="conv"), _conv_stack,
         (3, 3, 4), _BLOCKS),
    Case("linen: shared layer in a scan", lambda: Scanned(axis=None), _shared_stack,
         (3, 2, 2), _BLOCKS),
    Case("linen: nested scans", NestedScan, _nested_stack, (3, 2, 2), _BLOCKS),
    Case("linen: recurrent cell", Recurrent,
         _recurrent("SimpleCell_0/i/kernel", "SimpleCell_0/h/kernel"), (4, 2, 2),
         {"SimpleCell_0/i/bias": "bias"}),
    Case("nnx: recurrent cell", lambda: nnx_module(NNXRecurrent),
         _recurrent("rnn/cell/dense_i/kernel", "rnn/cell/dense_h/kernel"), (4, 2, 2),
         {"rnn/cell/dense_i/bias": "bias"}, error=(1e-6, 1e-6)),  # a float32 cell
    Case("nnx: low-rank adapters", lambda: nnx_module(NNXLoRA), _lora, (3, 2, 2)),
]  # fmt: skip


# Hand-written products.


class Written(nn.Module):
    """Parameters `{name: shape}` and a function `(params, images, state) -> logits`."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    forward: Callable
    flags: tuple[tuple[str, int], ...] = ()

    @nn.compact
    def __call__(self, images):
        zeros = nn.initializers.zeros
        p = {name: self.param(name, zeros, shape) for name, shape in self.shapes}
        if not self.flags:
            return self.forward(p, images)
        s = {f: self.variable("flags", f, jnp.asarray, v) for f, v in self.flags}
        return self.forward(p, images, {name: flag.value for name, flag in s.items()})


def written(
    name, forward, twin=None, image_shape=(3, 2, 2), *, state=(), frozen=(),
    branches=False, **shapes,
):  # fmt: skip
    flags = {key: np.asarray(value) for key, value in dict(state).items()}
    return Case(
        name,
        lambda: Written(tuple(shapes.items()), forward, tuple(dict(state).items())),
        twin,
        image_shape,
        dict(frozen),
        {"flags": flags} if flags else {},
        branches=branches,
        own_order=False,
    )


def through(name, change, shape=(12, 3), matrix=None):
    """`x @ change(w)`; in NumPy `matrix(w)` is the leaf as `[d, o]`."""

    def twin(tape, images):
        w = tape["w"] if matrix is None else matrix(tape["w"])
        return tape.product("w", flat(images), w)

    return written(
        f"leaf through {name}", lambda p, x: flat(x) @ change(p["w"]), twin, w=shape
    )


def _reversed_twin(tape, images):
    return tape.product("w", flat(images)[:, ::-1], tape["w"])


def _unit_axis(p, x):
    w = jnp.broadcast_to(p["w"][None], (1, 12, 3))
    return lax.dot_general(flat(x)[None], w, (((2,), (1,)), ((0,), (0,))))[0]


def _sharded(w):
    spec = jax.sharding.PartitionSpec(None, "x")
    sharding = jax.sharding.NamedSharding(_one_device("x"), spec)
    return lax.with_sharding_constraint(w, sharding)


def _plain_twin(tape, images):
    return tape.product("w", flat(images), tape["w"])


PASSED_THROUGH = [
    through("casts", lambda w: w.astype(jnp.bfloat16).astype(w.dtype)),
    through("a reshape", lambda w: w.reshape(12, 3), (36,),
            lambda w: w.reshape(12, 3)),
    through("a transpose", lambda w: w.T, (3, 12), np.transpose),
    through("a squeeze", lambda w: jnp.squeeze(w, (0, 2)), (1, 12, 1, 3),
            lambda w: w[0, :, 0]),
    written("leaf through a unit broadcast", _unit_axis, _plain_twin, w=(12, 3)),
    written("leaf through rev", lambda p, x: flat(x) @ jnp.flip(p["w"], 0),
            _reversed_twin, w=(12, 3)),
    through("a copy", jnp.copy),
    through("stop_gradient", lax.stop_gradient),
    through("an optimization barrier", lambda w: lax.optimization_barrier((w, w))[1]),
    through("a checkpoint name", lambda w: checkpoint_name(w, "weight")),
    through("reduce_precision", lambda w: lax.reduce_precision(w, 11, 52)),
    through("a sharding constraint", _sharded),
    through("several of them", lambda w: jax.jit(jnp.copy)(
        lax.stop_gradient(w)[None].reshape(3, 3, 4).transpose(1, 2, 0)
    ).reshape(12, 3), (3, 12), lambda w: w.reshape(3, 3, 4).transpose(1, 2, 0)
            .reshape(12, 3)),
]  # fmt: skip


@jax.custom_vjp
def _own_gradient(x, w):
    return x @ w


_own_gradient.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g)
)


@jax.custom_jvp
def _own_tangent(x, w):
    return jnp.tanh(x @ w)


@_own_tangent.defjvp
def _own_tangent_rule(primals, tangents):
    return _own_tangent(*primals), jnp.zeros_like(primals[0] @ primals[1])


def _chained(p, x):
    x = jax.jit(_own_gradient)(flat(x), p["a"])
    return _own_tangent(x, p["b"])


def _chained_twin(tape, images):
    x = tape.product("a", flat(images), tape["a"])
    return np.tanh(tape.product("b", x, tape["b"]))


def _weight_on_the_left(p, x):
    return lax.dot_general(p["w"], flat(x), (((1,), (1,)), ((), ()))).T


def _channels_first(p, x):
    y = lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), p["w"], (1, 1), "VALID",
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )  # fmt: skip
    return flat(y)


def _channels_first_twin(tape, images):
    taps = patches(images, (2, 2), (1, 1), [(0, 0)] * 2, (1, 1), (1, 1))
    rows = np.swapaxes(taps, -1, -2)  # the leaf's own order: channels, then taps
    lead = rows.shape[:3]
    matrix = tape["w"].reshape(len(tape["w"]), -1).T
    y = tape.product("w", rows.reshape(-1, matrix.shape[0]), matrix)
    return flat(y.reshape(*lead, -1).transpose(0, 3, 1, 2))


def _conv_ensemble(p, x):
    """vmap over both operands: the batching rule makes feature groups of it."""

    def conv(w, x):
        return lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return flat(jax.vmap(conv, out_axes=1)(p["w"], jnp.stack([x, jnp.tanh(x)])))


def _conv_ensemble_twin(tape, x):
    taps = [
        patches(member, (2, 2), (1, 1), [(0, 0)] * 2, (1, 1), (1, 1))
        for member in (x, np.tanh(x))
    ]
    rows = np.stack([member.reshape(-1, 8) for member in taps])
    y = tape.product("w", rows, tape["w"].reshape(2, 8, 3))
    return flat(y.reshape(2, len(x), -1).transpose(1, 0, 2))


def _interleaved(p, x):
    n, h, w, c = x.shape
    y = x.transpose(1, 0, 2, 3).reshape(-1, c) @ p["w"]
    return flat(y.reshape(h, n, w, -1).transpose(1, 0, 2, 3))


def _rowwise(p, x):
    y = lax.map(lambda row: row @ p["w"], x.transpose(1, 0, 2, 3))
    return flat(y.transpose(1, 0, 2, 3))


def _positions_twin(tape, images):
    return flat(tape.dense("w", images))


def _square_twice(p, x):
    """The same contraction, written as a 1x1 convolution and as a product."""
    kernel = p["w"].reshape(1, 1, 2, 2)
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return flat(jnp.einsum("nhwi,oi->nhwo", jnp.tanh(y), p["w"].T))


def _square_twice_twin(tape, images):
    return flat(tape.dense("w", np.tanh(tape.dense("w", images))))


def _two_orders(p, x):
    """A kernel `[h, w, c, o]` against the image, and permuted against its mirror."""
    kernel = p["w"]  # [3, 2, 2, 3]
    first = flat(x) @ kernel.reshape(12, 3)
    permuted = kernel.transpose(2, 0, 1, 3).reshape(12, 3)
    return first + jnp.tanh(flat(x[:, ::-1].transpose(0, 3, 1, 2)) @ permuted)


def _two_orders_twin(tape, images):
    matrix = tape["w"].reshape(12, 3)
    first = tape.product("w", flat(images), matrix)
    return first + np.tanh(tape.product("w", flat(images[:, ::-1]), matrix))


def _fori(p, x):
    step = jax.checkpoint(lambda i, h: jnp.tanh(h @ p["w"]))
    return flat(lax.fori_loop(0, 3, step, x))


def _fori_twin(tape, x):
    for _ in range(3):
        x = np.tanh(tape.dense("w", x))
    return flat(x)


def _after_while(p, x):
    """The product's input comes out of a while loop that the images entered."""
    h = lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * 1.5), (0, x))
    return flat(h[1]) @ p["w"]


def _after_while_twin(tape, images):
    return tape.product("w", flat(images) * 2.25, tape["w"])


def _scan_within_scan(p, x):
    def outer(x, ws):
        x, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)
        return jnp.tanh(x @ p["v"]), None

    x, _ = lax.scan(outer, x, p["w"].transpose(1, 0, 2, 3))
    return flat(x)


def _scan_within_scan_twin(tape, x):
    # The leaf is [inner 2, outer 3, d, o]; the outer scan's groups come first.
    for i in range(3):
        for j in range(2):
            w = tape["w"][j, i]
            x = np.tanh(tape.product("w", x.reshape(1, -1, 2), w[None], (i, j))[0])
        x = np.tanh(tape.product("v", x, tape["v"]))
    return x.reshape(-1, 12)


def _flagged(p, x, s):
    """A branch that the state decides: `a` at every position, or `b` and `a` pooled."""

    def deep(x):  # b and c meet nothing
        return jnp.tanh(x @ p["a"]).mean((1, 2))

    def shallow(x):
        return jnp.tanh(x.mean((1, 2)) @ p["b"]) @ p["c"] + x.mean((1, 2)) @ p["a"]

    return lax.cond(s["deep"], deep, shallow, x)


def _deep_twin(tape, x):
    nothing = tape.dense("b", x[:0, 0, 0])
    tape.dense("c", nothing)
    return np.tanh(tape.dense("a", x)).mean((1, 2))


def _shallow_twin(tape, x):
    pooled = x.mean((1, 2))
    y = tape.dense("c", np.tanh(tape.dense("b", pooled)))
    return y + tape.dense("a", pooled)


def _switched(p, x, s):
    branches = [
        lambda x: x @ p["w"],
        lambda x: jnp.tanh(x[:, :2] @ p["w"]).repeat(3, 1)[:, :3],
        lambda x: (x * 2) @ p["w"] @ p["w"],
    ]
    return flat(lax.switch(s["which"], branches, x))


def _switched_twin(tape, x):
    y = np.tanh(tape.dense("w", x[:, :2]))
    return flat(y.repeat(3, 1)[:, :3])


def _counted(p, x):
    """The scan's own counter decides: `w` only in the first two of four steps."""

    def step(h, i):
        return lax.cond(i < 2, lambda h: jnp.tanh(h @ p["w"]), lambda h: h * 2, h), None

    x, _ = lax.scan(step, x, jnp.arange(4))
    return flat(x)


def _loop_counted(p, x):
    """The same, with the counter in the carry beside what the images reach."""

    def step(i, h):
        return lax.cond(i < 2, lambda h: jnp.tanh(h @ p["w"]), lambda h: h * 2, h)

    return flat(lax.fori_loop(0, 4, step, x))


def _sliced_and_counted(p, x):
    """The second of three slices meets nothing."""

    def step(h, xs):
        w, i = xs
        taken = jnp.not_equal(i, 1)
        return lax.cond(taken, lambda h: jnp.tanh(h @ w), lambda h: h * 2, h), None

    x, _ = lax.scan(step, x, (p["w"], jnp.arange(3)))
    return flat(x)


def _sliced_and_counted_twin(tape, x):
    for i in range(3):
        rows = x.reshape(1, -1, 2)
        rows = rows[:, :0] if i == 1 else rows
        y = tape.product("w", rows, tape["w"][i][None], (i,))
        x = x * 2 if i == 1 else np.tanh(y.reshape(x.shape))
    return flat(x)


def _handed_through_scan(p, x):
    """A carry that the scan returns unchanged, and that is used after it."""
    (h, w), _ = lax.scan(lambda c, _: ((c[0] * 2, c[1]), None), (x, p["w"]), None, 2)
    return flat(h) @ w


def _changed_slices(p, x):
    """Slices `[1, o, d]`, squeezed, transposed and turned around in the body."""

    def step(h, w):
        w = jnp.squeeze(w, 0).T[::-1]
        return jnp.tanh(h @ w), None

    return flat(lax.scan(step, x, p["w"])[0])


def _changed_slices_twin(tape, x):
    for i in range(3):
        w = tape["w"][i, 0].T[None]
        y = tape.product("w", x[..., ::-1].reshape(1, -1, 2), w, (i,))
        x = np.tanh(y.reshape(x.shape))
    return flat(x)


def _repeated_stack(p, x):
    def through(h, _):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["w"])[0], None

    return flat(lax.scan(through, x, None, length=3)[0])


def _repeated_stack_twin(tape, x):
    for step in range(6):
        i = step % 2
        y = tape.product("w", x.reshape(1, -1, 2), tape["w"][i][None], (i,))
        x = np.tanh(y.reshape(x.shape))
    return flat(x)


def _repeated_slices(p, x):
    def through(h, w):
        again = lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, length=3)
        return again[0], None

    return flat(lax.scan(through, x, p["w"])[0])


def _repeated_slices_twin(tape, x):
    for step in range(6):
        i = step // 3
        y = tape.product("w", x.reshape(1, -1, 2), tape["w"][i][None], (i,))
        x = np.tanh(y.reshape(x.shape))
    return flat(x)


def _vmapped(p, x):
    """Every row of pixels but the last has its own matrix."""
    return flat(jax.vmap(lambda w, x: x @ w, (0, 1), 1)(p["w"], x[:, :2]))


def _vmapped_twin(tape, x):
    rows = x[:, :2].transpose(1, 0, 2, 3)
    y = tape.product("w", rows.reshape(2, -1, 2), tape["w"])
    return flat(y.reshape(2, len(x), -1).transpose(1, 0, 2))


def _counted_twin(tape, x):
    for _ in range(2):
        x = np.tanh(tape.dense("w", x))
    return flat(x * 4)


def _per_image(p, x):
    """A branch for each image: reaches the trace as a select of both sides."""

    def one(image):
        return lax.cond(
            image[0, 0, 0] > 0,
            lambda image: image @ p["a"],
            lambda image: jnp.tanh(image @ p["b"]) @ p["b"],
            image,
        )

    return flat(jax.vmap(one)(jnp.tanh(x @ p["c"])))


def _per_image_twin(tape, x):
    x = np.tanh(tape.dense("c", x))
    a, b = tape.dense("a", x), tape.dense("b", np.tanh(tape.dense("b", x)))
    return flat(np.where(x[:, :1, :1, :1] > 0, a, b))


def _dead_ends(p, x):
    unused = jnp.sum(p["w"] * p["w"]) + jnp.sum(p["scale"])  # nothing reads this
    _, y = jax.jit(lambda w, x: (w * unused, x @ w))(p["w"], flat(x))
    return y


WRITTEN = [
    written("custom gradients", _chained, _chained_twin, a=(12, 3), b=(3, 2)),
    written("weight on the left of the product", _weight_on_the_left,
            lambda tape, x: tape.product("w", flat(x), tape["w"].T), w=(3, 12)),
    written("channels first", _channels_first, _channels_first_twin, (3, 4, 2),
            w=(3, 2, 2, 2)),
    written("ensemble of convolutions", _conv_ensemble, _conv_ensemble_twin, (3, 4, 2),
            w=(2, 2, 2, 2, 3)),
    written("images interleaved by a transpose", _interleaved, _positions_twin,
            w=(2, 3)),
    written("product inside lax.map", _rowwise, _positions_twin, w=(2, 3)),
    written("one weight as convolution and as product", _square_twice,
            _square_twice_twin, w=(2, 2)),
    written("one weight in two orders of its fan-in", _two_orders, _two_orders_twin,
            w=(3, 2, 2, 3)),
    written("shared weight in a fori loop", _fori, _fori_twin, w=(2, 2)),
    written("input from a while loop", _after_while, _after_while_twin, w=(12, 3)),
    written("scan within a scan, leaf in the other order", _scan_within_scan,
            _scan_within_scan_twin, w=(2, 3, 2, 2), v=(2, 2)),
    written("branch taken by the state", _flagged, _deep_twin, a=(2, 3), b=(2, 2),
            c=(2, 3), state={"deep": True}, branches=True),
    written("branch not taken by the state", _flagged, _shallow_twin, a=(2, 3),
            b=(2, 2), c=(2, 3), state={"deep": False}, branches=True),
    written("switch of three", _switched, _switched_twin, w=(2, 2),
            state={"which": 1}, branches=True),
    written("branch taken by a scan's counter", _counted, _counted_twin, w=(2, 2),
            branches=True),
    written("branch taken by a loop's counter", _loop_counted, _counted_twin, w=(2, 2),
            branches=True),
    written("slices taken by a scan's counter", _sliced_and_counted,
            _sliced_and_counted_twin, w=(3, 2, 2), branches=True),
    written("carried unchanged through a scan", _handed_through_scan,
            lambda tape, x: tape.product("w", flat(4 * x), tape["w"]), w=(12, 3)),
    written("slices changed in the scan's body", _changed_slices, _changed_slices_twin,
            w=(3, 1, 2, 2)),
    written("stack repeated by an outer scan", _repeated_stack, _repeated_stack_twin,
            w=(2, 2, 2)),
    written("slices repeated by an inner scan", _repeated_slices,
            _repeated_slices_twin, w=(2, 2, 2)),
    written("stack through a vmap", _vmapped, _vmapped_twin, w=(2, 2, 3)),
    written("branch chosen for each image", _per_image, _per_image_twin, a=(2, 2),
            b=(2, 2), c=(2, 2)),
    written("dead uses", _dead_ends, _plain_twin, w=(12, 3), scale=(3,),
            frozen={"scale": "no live"}),
]  # fmt: skip

# Cases that share nothing but a compilation, where one by one would take too long.
SECTIONS = {
    "convolutions": CONVOLUTIONS,
    "dense layers": DENSE,
    "networks": NETWORKS,
    "leaves passed through": PASSED_THROUGH,
    "written products": WRITTEN,
}

CASES = [*CONVOLUTIONS, *DENSE, *NETWORKS, *PASSED_THROUGH, *WRITTEN]


def _all_cases(long):
    """All as parameters; what `long` says yes to are long tests."""
    marked = [pytest.param(c, marks=[pytest.mark.long] * long(c)) for c in CASES]
    return pytest.mark.parametrize("case", marked, ids=lambda case: case.name)


# Whole networks take long; those of NNX say little more than linen's.
every_case = _all_cases(lambda c: c in NETWORKS and c.name.startswith("nnx"))
every_short_case = _all_cases(lambda c: c in NETWORKS)


# Leaves that have no input. Each maps the frozen leaves to a word of the reason.


def _merged(p, x):
    return flat(x) @ (p["w"] + p["a"] @ p["b"])


def _standardised(p, x):
    w = p["w"] - p["w"].mean(0, keepdims=True)
    return flat(x) @ (w / w.std())


def _scaled(p, x):
    return (flat(x) * p["scale"][None]) @ p["w"]


def _positions(p, x):
    return flat(x + p["positions"][None]) @ p["w"]


def _transposed_use(p, x):
    h = jnp.tanh(flat(x) @ p["w"])
    return h @ p["w"].T


def _in_while(p, x):
    start = (0, flat(x))
    return (
        lax.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"])), start
        )[1]
        @ p["v"]
    )


def _as_carry(p, x):
    def step(carry, _):
        h, w = carry
        return (jnp.tanh(h @ w), w * 0.5), None

    return lax.scan(step, (flat(x), p["w"]), None, length=2)[0][0]


def _collected(p, x):
    _, flipped = lax.scan(lambda c, w: (c, w[::-1]), 0.0, p["w"])
    return flat(x) @ flipped


def _through_cond(p, x, s):
    w = lax.cond(s["deep"], lambda w, v: w, lambda w, v: v, p["w"], p["v"])
    return flat(x) @ w


def _only_constants(p, x):
    return flat(x) + (jnp.ones((1, 5)) @ p["w"])


def _constants_too(p, x):
    return flat(x) @ p["w"] + jnp.arange(12.0)[None] @ p["w"]


def _elementwise_too(p, x):
    return flat(x) @ p["w"] + jnp.sum(p["w"])


def _broadcast_copies(p, x):
    w = jnp.broadcast_to(p["w"][None], (3, 4, 3))
    return flat(jnp.einsum("nhd,hdo->nho", x.reshape(-1, 3, 4), w))


def _as_image(p, x):
    """The leaf is convolved, and the image is the kernel."""
    kernel = x[0][..., None]
    y = lax.conv_general_dilated(
        p["w"], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(1, -1)


def _integer(p, x):
    return flat(x) @ p["w"].astype(jnp.int32).astype(x.dtype)


class Tied(nn.Module):
    """Pixels looked up in an embedding, whose transpose makes the logits."""

    @nn.compact
    def __call__(self, images):
        embed = nn.Embed(5, 3, name="embed")
        tokens = jnp.clip(images[..., 0].reshape(len(images), -1) + 2.5, 0, 4)
        x = nn.Dense(3, name="dense")(embed(tokens.astype(jnp.int32)))
        return embed.attend(x.mean(1))


class NNXTied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 3, rngs=rngs)
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, images):
        tokens = jnp.clip(images[..., 0].reshape(len(images), -1) + 2.5, 0, 4)
        x = self.dense(self.embed(tokens.astype(jnp.int32)))
        return self.embed.attend(x.mean(1))


_TIED = {"embed/embedding": "looked up", "dense/bias": "bias"}

FROZEN = [
    written("merged low-rank product", _merged, w=(12, 3), a=(12, 2), b=(2, 3),
            frozen={"w": "added", "a": "another parameter", "b": "another parameter"}),
    written("weight standardisation", _standardised, w=(12, 3),
            frozen={"w": "reduce_sum"}),
    written("scale", _scaled, scale=(12,), w=(12, 3), frozen={"scale": "scale"}),
    written("position embedding", _positions, positions=(3, 2, 2), w=(12, 3),
            frozen={"positions": "added"}),
    Case("linen: tied embedding", Tied, frozen=_TIED),
    Case("nnx: tied embedding", lambda: nnx_module(NNXTied), frozen=_TIED),
    written("a weight and its transpose", _transposed_use, w=(12, 12),
            frozen={"w": "different axes"}),
    written("inside a while loop", _in_while, w=(12, 12), v=(12, 2),
            frozen={"w": "while"}),
    written("carried through a scan", _as_carry, w=(12, 12), frozen={"w": "carried"}),
    written("collected by a scan", _collected, w=(12, 3), frozen={"w": "collected"}),
    written("handed through a branch", _through_cond, w=(12, 3), v=(12, 3),
            state={"deep": True}, frozen={"w": "branch", "v": "branch"}),
    written("sliced", lambda p, x: flat(x) @ p["w"][:, :2], w=(12, 3),
            frozen={"w": "slice"}),
    written("joined", lambda p, x: flat(x) @ jnp.concatenate([p["w"], p["v"]], 1),
            w=(12, 3), v=(12, 2), frozen={"w": "joined", "v": "joined"}),
    written("only constants meet it", _only_constants, w=(5, 12),
            frozen={"w": "no image"}),
    written("constants meet it too", _constants_too, w=(12, 3),
            frozen={"w": "no image"}),
    written("an elementwise use besides", _elementwise_too, w=(12, 3),
            frozen={"w": "reduce_sum"}),
    written("broadcast to several copies", _broadcast_copies, w=(4, 3),
            frozen={"w": "broadcast"}),
    written("convolved as an image", _as_image, w=(2, 5, 5, 2),
            frozen={"w": "as an image"}),
    written("cast to integers", _integer, w=(12, 3), frozen={"w": "convert"}),
    written("not used", lambda p, x: flat(x) @ p["w"], w=(12, 3), v=(3,),
            frozen={"v": "no live"}),
]  # fmt: skip
