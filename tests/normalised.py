"""Tiny networks with BatchNorm, each with a NumPy twin that notes its inputs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from oracles import Tape, by_path, double

import jaxunlearn as ju

CLASSES = 3


def drawn(tree, dtype, seed=0):
    """A tree of these shapes: weights of unit gain, scales and variances about one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if "var" in name:
            values = rng.uniform(0.5, 2, leaf.shape)
        else:
            fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10
            values = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        return jnp.asarray(values + ("scale" in name), dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


def draw_classifier(build, image_shape, dtype, seed=0) -> ju.Classifier:
    """A linen module `build()`, or an NNX module `build(rngs)`, with drawn leaves."""
    if isinstance(build, type) and issubclass(build, nnx.Module):
        graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        return ju.freeze(nnx.merge(graph, drawn(state, dtype, seed)))
    model = build()
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return ju.freeze(model, drawn(variables, dtype, seed))


class StatisticsTape(Tape):
    """Also notes what every normalisation by running statistics is fed."""

    def __init__(self, classifier):
        super().__init__(classifier.params)
        self.state = {
            path.removeprefix("batch_stats/"): double(leaf)
            for path, leaf in by_path(classifier.state).items()
        }
        self.seen = {}

    def norm(self, path, x, axis=-1, at=()):
        """`axis`: where the statistics' axes lie in `x [n, ...]`."""
        # Slices of a scan belong together, calls of one layer do not.
        self.seen.setdefault((path, at == () and len(self.seen)), []).append(x)
        axes = [a % x.ndim for a in np.atleast_1d(axis)]
        shape = [n if a in axes else 1 for a, n in enumerate(x.shape)]
        mean, var = (
            self.state[f"{path}/{name}".lstrip("/")][at] for name in ("mean", "var")
        )
        x = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-5)
        if f"{path}/scale" in self.params:
            x = x * self[f"{path}/scale"][at].reshape(shape)
            x = x + self[f"{path}/bias"][at].reshape(shape)
        return x

    def inputs(self) -> list[tuple[str, np.ndarray]]:
        """`(path, [n, scan, ...])` of each layer in the order of the program."""
        return [
            (path, np.stack(slices, 1) if len(slices) > 1 else slices[0])
            for (path, _), slices in self.seen.items()
        ]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and `twin(tape, images) -> logits` in NumPy.

    Attributes:
      axes: where the statistics' axes lie in a layer's input without images and scans.
      scans: the expected kinds of the surrounding scans.
      error: relative, where some layer computes in less than float64.
    """

    name: str
    build: Callable[..., Any]
    twin: Callable[[StatisticsTape, np.ndarray], np.ndarray]
    image_shape: tuple[int, int, int] = (4, 4, 2)
    axes: tuple[int, ...] = (3,)
    scans: tuple[str, ...] = ()
    error: float = 1e-12

    def classifier(self, dtype=np.float64) -> ju.Classifier:
        return draw_classifier(self.build, self.image_shape, dtype)

    def images(self, n, dtype=np.float64, seed=1):
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.uniform(size=(n, *self.image_shape)), dtype)

    def run_twin(self, classifier, images):
        tape = StatisticsTape(classifier)
        return self.twin(tape, double(images)), tape


class Plain(nn.Module):
    """No BatchNorm."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


def _plain(tape, x):
    return tape.dense("head/kernel", x.reshape(len(x), -1))


class ConvNet(nn.Module):
    """Two of them, with scale and bias."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        options = {"use_running_average": not train, "dtype": self.dtype}
        x = nn.Conv(3, (3, 3), 2, use_bias=False, name="conv")(x)
        x = nn.gelu(nn.BatchNorm(**options, name="norm")(x), approximate=True)
        x = nn.Conv(4, (2, 2), name="last")(x)
        x = nn.relu(nn.BatchNorm(**options, name="last_norm")(x))
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


class NNXConvNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.last = nnx.Conv(3, 4, (2, 2), rngs=rngs)
        self.last_norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.conv(x)), approximate=True)
        x = nnx.relu(self.last_norm(self.last(x)))
        return self.head(x.reshape(x.shape[0], -1))


def _gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def _conv_net(tape, x):
    x = tape.conv("conv/kernel", x, kernel_size=(3, 3), features=3, strides=2)
    x = _gelu(tape.norm("norm", x))
    x = tape.conv("last/kernel", x, kernel_size=(2, 2), features=4)
    x = np.maximum(tape.norm("last_norm", x), 0)
    return tape.dense("head/kernel", x.reshape(len(x), -1))


class Block(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.Dense(x.shape[-1], name="layer")(x)
        x = nn.BatchNorm(use_running_average=not self.train, name="norm")(x)
        return jnp.tanh(x), None


class Scanned(nn.Module):
    """A scan over three layers, each with statistics of its own."""

    wrap: Any = staticmethod(lambda block: block)

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            self.wrap(Block),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = scan(name="blocks")(x, None)
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


def _scanned(tape, x):
    for i in range(3):
        x = tape.dense("blocks/layer/kernel", x, at=(i,))
        x = np.tanh(tape.norm("blocks/norm", x, at=(i,)))
    return tape.dense("head/kernel", x.reshape(len(x), -1))


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(2, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.norm(self.layer(x)))


class NNXScanned(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(NNXBlock))(rngs)
        self.head = nnx.Linear(32, CLASSES, rngs=rngs)

    def __call__(self, x):
        scan = nnx.scan(
            lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry
        )
        return self.head(scan(self.blocks, x).reshape(x.shape[0], -1))


class Twice(nn.Module):
    """One block, called twice, compiled apart and computed again in gradients."""

    @nn.compact
    def __call__(self, x):
        block = nn.remat(nn.jit(Block))(name="blocks")
        for _ in range(2):
            x, _ = block(x)
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


def _twice(tape, x):
    for _ in range(2):
        x = tape.dense("blocks/layer/kernel", x)
        x = np.tanh(tape.norm("blocks/norm", x))
    return tape.dense("head/kernel", x.reshape(len(x), -1))


class OverAxes(nn.Module):
    """BatchNorm alone, over some axes of the images, before the head."""

    axis: Any
    options: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x):
        options = dict.fromkeys(self.options, False)
        norm = nn.BatchNorm(True, axis=self.axis, name="norm", **options)
        return nn.Dense(CLASSES, name="head")(norm(x).reshape(x.shape[0], -1))


def over_axes(axis):
    def twin(tape, x):
        x = tape.norm("norm", x, axis)
        return tape.dense("head/kernel", x.reshape(len(x), -1))

    return twin


class Written(nn.Module):
    """Normalisation written by hand."""

    formula: Callable[..., Any]

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, c).value
        var = self.variable("batch_stats", "var", jnp.ones, c).value
        x = self.formula(x, mean, var)
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


def written(formula):
    return lambda: Written(formula)


def wide(leaf):
    return leaf[None, None, None]


def divided(x, mean, var):
    return (x - wide(mean)) / jnp.sqrt(wide(var) + 1e-5)


def folded_scale(x, mean, var):
    scale = 0.5 * lax.rsqrt(var + 1e-5)
    return (x - wide(mean)) * wide(scale)


def scaled_before(x, mean, var):
    return 0.5 * (x - wide(mean)) / jnp.sqrt(wide(var) + 1e-5) + 0.25


def reciprocal(x, mean, var):
    return (x - wide(mean)) * wide(1 / jnp.sqrt(var + 1e-5))


def raised(x, mean, var):
    return (x - wide(mean)) * wide((var + 1e-5) ** -0.5)


def folded(x, mean, var):
    scale = 0.5 / jnp.sqrt(var + 1e-5)
    return x * wide(scale) + wide(0.25 - mean * scale)


def folded_apart(x, mean, var):
    scale = 0.5 * lax.rsqrt(var + 1e-5)
    return x * wide(scale) - wide(mean * scale) + 0.25


def folded_as_keras(x, mean, var):
    scale = 0.5 * lax.rsqrt(wide(var) + 1e-5)
    return x * scale + (-wide(mean) * scale + 0.25)


class Ensemble(nn.Module):
    """Two BatchNorms, each with statistics of its own, of one input."""

    @nn.compact
    def __call__(self, x):
        norms = nn.vmap(
            nn.BatchNorm,
            in_axes=None,
            axis_size=2,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
        )
        x = norms(use_running_average=True, name="norm")(x).sum(0)
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


def _ensemble(tape, x):
    both = [tape.norm("norm", x, at=(i,)) for i in range(2)]
    return tape.dense("head/kernel", sum(both).reshape(len(x), -1))


def _by_hand(tape, x, factor=1.0, offset=0.0):
    x = factor * tape.norm("", x) + offset
    return tape.dense("head/kernel", x.reshape(len(x), -1))


class Normed(nn.Module):
    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        x = self.norm(x)
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


CASES = [
    Case("linen: two of a conv net", ConvNet, _conv_net),
    Case("nnx: two of a conv net", NNXConvNet, _conv_net),
    Case("linen: scanned", Scanned, _scanned, scans=("groups",)),
    Case(
        "linen: scanned and computed again",
        lambda: Scanned(wrap=nn.remat),
        _scanned,
        scans=("groups",),
    ),
    Case("nnx: scanned", NNXScanned, _scanned, scans=("groups",)),
    Case("linen: one layer used twice", Twice, _twice),
    Case(
        "linen: no scale, no bias",
        lambda: OverAxes(-1, ("use_scale", "use_bias")),
        over_axes(-1),
    ),
    Case("linen: channels second", lambda: OverAxes(1), over_axes(1), axes=(1,)),
    Case(
        "linen: statistics of two axes",
        lambda: OverAxes((1, 3)),
        over_axes((1, 3)),
        axes=(1, 3),
    ),
    Case(
        "linen: one channel", lambda: OverAxes(-1), over_axes(-1), image_shape=(3, 3, 1)
    ),
    Case(
        "linen: in bfloat16",
        lambda: ConvNet(dtype=jnp.bfloat16),
        _conv_net,
        error=0.05,
    ),
    Case("linen: two of one input", Ensemble, _ensemble, axes=(0, 4)),
    Case("by hand: divided by a root", written(divided), _by_hand),
    Case(
        "by hand: scale folded into the root",
        written(folded_scale),
        lambda tape, x: _by_hand(tape, x, 0.5),
    ),
    *(
        Case(
            f"by hand: {formula.__name__}",
            written(formula),
            lambda tape, x: _by_hand(tape, x, 0.5, 0.25),
        )
        for formula in (scaled_before, folded, folded_apart, folded_as_keras)
    ),
    *(
        Case(f"by hand: {formula.__name__}", written(formula), _by_hand)
        for formula in (reciprocal, raised)
    ),
]

# Networks whose state holds statistics of another kind, or none.
OTHERS = {
    "no normalisation": Plain,
    "layer norm": lambda: Normed(nn.LayerNorm()),
    "group norm": lambda: Normed(nn.GroupNorm(1)),
    "divided by the variance": written(
        lambda x, mean, var: (x - wide(mean)) / wide(var)
    ),
    "a rectifier between": written(
        lambda x, mean, var: (
            nn.relu(x * wide(lax.rsqrt(var + 1e-5)))
            - wide(mean * lax.rsqrt(var + 1e-5))
        )
    ),
    "only a mean": written(lambda x, mean, var: x - wide(mean)),
    "only a variance": written(lambda x, mean, var: x * lax.rsqrt(wide(var) + 1e-5)),
    "a mean of the images' own": written(
        lambda x, mean, var: (
            (x - x.mean((1, 2), keepdims=True)) * lax.rsqrt(wide(var) + 1e-5)
        )
    ),
}
