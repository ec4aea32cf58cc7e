"""Slow, explicit NumPy twins in float64, written without the library's help.

A twin is a second implementation of a network in which every weight meets its input as
`rows @ matrix`. A `Tape` notes the rows. A twin whose logits are the network's logits
has the right rows: that is how the oracles themselves are tested.
"""

import itertools
import math

import jax
import numpy as np


def by_path(tree) -> dict:
    """`{"layer/kernel": leaf}`, None and the library's records counted as leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_record)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): v for p, v in leaves}


def _is_record(node) -> bool:
    return node is None or hasattr(node, "layout")


def double(array) -> np.ndarray:
    return np.asarray(array).astype(np.float64)


def relative_error(value, truth) -> float:
    """Frobenius norm of the difference, relative to the truth."""
    value, truth = double(value), double(truth)
    if value.shape != truth.shape:
        raise AssertionError(f"shape {value.shape}, expected {truth.shape}")
    scale = np.linalg.norm(truth)
    return float(np.linalg.norm(value - truth) / (scale if scale > 0 else 1.0))


def sort_rows(rows: np.ndarray) -> np.ndarray:
    """Rows `[N, d]` in an order that depends on their values alone."""
    direction = np.random.default_rng(0).normal(size=rows.shape[-1])
    return rows[np.argsort(rows @ direction, kind="stable")]


class Tape:
    """Parameters in float64, and the rows that a twin fed to each of them."""

    def __init__(self, params):
        self.params = {path: double(leaf) for path, leaf in by_path(params).items()}
        self._rows = {}
        self._matrices = {}

    def __getitem__(self, path: str) -> np.ndarray:
        return self.params[path]

    def product(self, path, rows, matrix, at=()) -> np.ndarray:
        """`rows [g, N, d] @ matrix [g, d, o]`, noted; `at`: a slice of a scan."""
        if rows.ndim == 2:
            return self.product(path, rows[None], matrix[None], at)[0]
        known = self._matrices.setdefault((path, at), matrix)
        if not np.array_equal(known, matrix):
            raise AssertionError(f"{path} is read in two ways")
        self._rows.setdefault((path, at), []).append(rows)
        return rows @ matrix

    def paths(self) -> set[str]:
        return {path for path, _ in self._rows}

    def _slices(self, path):
        return sorted(at for known, at in self._rows if known == path)

    def matrix(self, path) -> np.ndarray:
        """The leaf as `[g, d, o]`, slices of scans first."""
        return np.concatenate([self._matrices[path, at] for at in self._slices(path)])

    def rows(self, path) -> list[np.ndarray]:
        """One array `[N, d]` for each group."""
        uses = [np.concatenate(self._rows[path, at], 1) for at in self._slices(path)]
        return [rows for use in uses for rows in use]

    def gram(self, path) -> np.ndarray:
        return np.stack([rows.T @ rows for rows in self.rows(path)])

    def count(self, path) -> int:
        counts = {len(rows) for rows in self.rows(path)}
        if len(counts) != 1:
            raise AssertionError(f"{path}: groups with {counts} rows")
        return counts.pop()

    # Layers. `path` names the weight; a bias is looked up by the weight's neighbour.

    def bias(self, path, at=()):
        bias = self.params.get(path.removesuffix("kernel") + "bias")
        return 0.0 if bias is None else bias[at]

    def dense(self, path, x, contracted=1, at=()) -> np.ndarray:
        """The last `contracted` axes of `x` against the first of the leaf."""
        kernel = self[path][at]
        d = math.prod(kernel.shape[:contracted])
        lead, out = x.shape[: x.ndim - contracted], kernel.shape[contracted:]
        y = self.product(path, x.reshape(-1, d), kernel.reshape(d, -1), at)
        return y.reshape(*lead, *out) + self.bias(path, at)

    def conv(
        self,
        path,
        x,
        *,
        kernel_size,
        features,
        strides=1,
        padding="SAME",
        kernel_dilation=1,
        input_dilation=1,
        feature_group_count=1,
        at=(),
    ) -> np.ndarray:
        kernel = self[path][at]
        size, groups = tuple(kernel_size), feature_group_count
        strides, dilation, spread = (
            _each(v, size) for v in (strides, kernel_dilation, input_dilation)
        )
        sides = x.shape[1:-1]
        pads, edge = _padding(padding, sides, size, strides, dilation, spread)
        taps = patches(x, size, strides, pads, dilation, spread, edge)
        lead = taps.shape[: 1 + len(size)]
        # [n, *out, taps, groups, c / groups] -> [groups, N, taps * c / groups]
        d = taps.shape[-2] * taps.shape[-1] // groups
        rows = taps.reshape(*lead, taps.shape[-2], groups, taps.shape[-1] // groups)
        rows = np.moveaxis(rows, -2, 0).reshape(groups, math.prod(lead), d)
        matrix = kernel.reshape(d, groups, features // groups)
        y = self.product(path, rows, matrix.transpose(1, 0, 2), at)
        return y.transpose(1, 0, 2).reshape(*lead, features) + self.bias(path, at)

    def conv_transpose(
        self,
        path,
        x,
        *,
        kernel_size,
        features,
        strides=1,
        padding="SAME",
        kernel_dilation=1,
        transpose_kernel=False,
    ) -> np.ndarray:
        kernel, size = self[path], tuple(kernel_size)
        strides, dilation = _each(strides, size), _each(kernel_dilation, size)
        one = (1,) * len(size)
        pads = [
            _transposed_pads(padding, (k - 1) * d + 1, s)
            for k, d, s in zip(size, dilation, strides, strict=True)
        ]
        taps = patches(
            x, size, one, pads, dilation, strides, "zero", flip=transpose_kernel
        )
        lead = taps.shape[: 1 + len(size)]
        rows = taps.reshape(math.prod(lead), -1)
        if transpose_kernel:  # stored as [*size, features, c]
            kernel = np.swapaxes(kernel, -1, -2)
        y = self.product(path, rows, kernel.reshape(-1, features)).reshape(*lead, -1)
        if padding == "CIRCULAR":
            y = _fold(y, x.shape[1:-1], strides, transpose_kernel)
        return y + self.bias(path)


def _each(value, size) -> tuple[int, ...]:
    return (value,) * len(size) if isinstance(value, int) else tuple(value)


def patches(
    x, size, strides, pads, dilation, spread, edge="zero", flip=False
) -> np.ndarray:
    """What each tap of a kernel sees: `[n, *out, taps, channels]`.

    Args:
      x: `[n, *sides, channels]`.
      size: sides of the kernel.
      strides: of the output positions.
      pads: `(low, high)` per side; negative numbers cut off.
      dilation: distance of two taps.
      spread: distance at which the input's own elements are laid out, zeros between.
      edge: what stands beyond the edge: "zero", "wrap" or "reflect".
      flip: whether tap 0 is the last one of the window.
    """
    sides = x.shape[1:-1]
    out = []
    for side, k, s, (low, high), d, gap in zip(
        sides, size, strides, pads, dilation, spread, strict=True
    ):
        length = (side - 1) * gap + 1 + low + high
        out.append((length - ((k - 1) * d + 1)) // s + 1)
    taps = list(itertools.product(*map(range, size)))
    result = np.zeros((len(x), *out, len(taps), x.shape[-1]), x.dtype)
    for position in itertools.product(*map(range, out)):
        for number, tap in enumerate(taps):
            source = []
            for axis, side in enumerate(sides):
                step = size[axis] - 1 - tap[axis] if flip else tap[axis]
                place = position[axis] * strides[axis] + step * dilation[axis]
                source.append(_source(place - pads[axis][0], side, spread[axis], edge))
            if None not in source:
                result[:, *position, number] = x[:, *source]
    return result


def _source(place, side, gap, edge):
    """Which element of a side stands at this place, or None for a zero."""
    if edge == "wrap":
        return place % side
    if edge == "reflect":
        place = abs(place)
        return place if place < side else 2 * (side - 1) - place
    inside = place % gap == 0 and 0 <= place // gap < side
    return place // gap if inside else None


def _padding(padding, sides, size, strides, dilation, spread):
    wide = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    if padding in ("CIRCULAR", "REFLECT"):
        edge = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding]
        return [((k - 1) // 2, k // 2) for k in wide], edge
    if padding == "CAUSAL":
        return [(wide[0] - 1, 0)], "zero"
    if padding == "VALID":
        return [(0, 0)] * len(size), "zero"
    if padding == "SAME":
        pads = []
        for side, k, s, gap in zip(sides, wide, strides, spread, strict=True):
            length = (side - 1) * gap + 1
            missing = max((math.ceil(length / s) - 1) * s + k - length, 0)
            pads.append((missing // 2, missing - missing // 2))
        return pads, "zero"
    return [tuple(p) for p in padding], "zero"


def _transposed_pads(padding, k, s):
    if padding == "SAME":
        total = k + s - 2
        low = k - 1 if s > k - 1 else math.ceil(total / 2)
        return low, total - low
    return k - 1, s - 1 + max(k - s, 0)


def _fold(y, sides, strides, transposed):
    """Add up the periods of a circular transposed convolution."""
    for axis, (side, s) in enumerate(zip(sides, strides, strict=True), start=1):
        period = side * s
        missing = -(y.shape[axis] - period) % (2 * period)
        low = missing // 2 if transposed else (missing + 1) // 2
        folded = np.zeros((*y.shape[:axis], period, *y.shape[axis + 1 :]), y.dtype)
        for place in range(y.shape[axis]):
            into = (slice(None),) * axis
            folded[(*into, (place + low) % period)] += y[(*into, place)]
        y = folded
    return y


def softmax(x) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(tape: Tape, path: str, x, memory) -> np.ndarray:
    """Multi-head attention of `x [n, t, c]` over `memory [n, s, c]`."""
    query = tape.dense(f"{path}/query/kernel", x)  # [n, t, heads, depth]
    key = tape.dense(f"{path}/key/kernel", memory)
    value = tape.dense(f"{path}/value/kernel", memory)
    scores = np.einsum("nthd,nshd->nhts", query, key) / math.sqrt(query.shape[-1])
    mixed = np.einsum("nhts,nshd->nthd", softmax(scores), value)
    return tape.dense(f"{path}/out/kernel", mixed, contracted=2)


class SteppedTape(Tape):
    """A tape whose products are moved one output at a time, by an imaginary step.

    The twin is run on copies of one image. In copy `j` output `j` of call `call` is
    moved by `i h`: the logits' imaginary parts over `h` are their derivative, without
    the cancellation of a difference.
    """

    step = 1e-100

    def __init__(self, params, call=None):
        super().__init__(params)
        self.call, self.calls = call, []

    def product(self, path, rows, matrix, at=()) -> np.ndarray:
        if rows.ndim == 2:
            return self.product(path, rows[None], matrix[None], at)[0]
        y = rows @ matrix
        self.calls.append((path, at, y.shape, matrix))
        if self.call == len(self.calls) - 1:
            g, n, o = y.shape
            copies = math.isqrt(g * n * o)
            y = y.astype(complex).reshape(g, copies, n // copies, o)
            for copy in range(copies):
                place = np.unravel_index(copy, (g, n // copies, o))
                y[place[0], copy, place[1], place[2]] += 1j * self.step
            y = y.reshape(g, n, o)
        return y


def output_jacobians(twin, params, image) -> list[tuple]:
    """`(path, at, matrix, [k, g, n, o])` of each product: of the logits by its outputs.

    `twin(tape, images) -> logits`; `image` is one, without its axis.
    """
    plain, found = SteppedTape(params), []
    count = twin(plain, double(image)[None]).size
    for number, (path, at, shape, matrix) in enumerate(plain.calls):
        if math.prod(shape) == 0:
            found.append((path, at, matrix, np.zeros((count, *shape))))
            continue
        copies = np.repeat(double(image)[None], math.prod(shape), axis=0)
        logits = twin(SteppedTape(params, number), copies)
        jacobian = np.imag(logits.reshape(len(copies), -1)) / SteppedTape.step
        found.append((path, at, matrix, jacobian.T.reshape(-1, *shape)))
    return found
