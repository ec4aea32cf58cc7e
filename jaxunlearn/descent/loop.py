"""Many steps of one function, in compiled chunks with the host in between."""

import collections
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from jaxunlearn import parallel
from jaxunlearn.capture.layout import path_name

# Long enough to hide the host, short enough for a progress bar.
CHUNK = 25
# What a chunk's minibatches may take of a device's memory, next to the data.
CHUNK_BYTES = 2**28


def run_steps(
    step: Callable[..., tuple[PyTree, PyTree]],
    carry: PyTree,
    constants: PyTree,
    *,
    steps: int,
    start: int = 0,
    feed: Callable[[int, int], PyTree] | None = None,
    chunk: int = CHUNK,
    first_alone: bool = False,
    ahead: bool = False,
    donate: bool = False,
    on_chunk: Callable[[int, PyTree, PyTree], bool | None] | None = None,
) -> tuple[PyTree, PyTree]:
    """Run `carry, output = step(carry, constants, index)` for `steps` indices.

    Where loops are fast a chunk is one loop on the device. Its length is an argument,
    so that one program serves every chunk and every number of steps, and a run that was
    split elsewhere gives the same bits. Where loops are slow (see
    `parallel.loops_are_slow`) a chunk is one compiled step called `chunk` times, and
    the host runs ahead of the device until the chunk's end.

    `step` is static: a module-level function, or a hashable object with `__call__`.
    Equal steps on equal shapes share a program, so that arrays belong into `carry`,
    which changes and must keep its structure, shapes and dtypes, and `constants`.
    `feed(first, stop)` gives arrays with an entry for each step; `step` then takes its
    own as a fourth argument. In a loop the last chunk is fed to its full length.

    The carry is copied, unless it is an `own_copy` to `donate`. With `first_alone` the
    first chunk is a single step. With `ahead` the next chunk is sent off before the
    outputs of one are waited for. `on_chunk(stop, carry, outputs)` is called after
    each: with the index of the next step, the carry (of the chunk sent off last), which
    lives only until it returns, and this chunk's outputs; if it returns True, no
    further chunk is sent. Outputs, also those returned, of all steps, are stacked NumPy
    arrays.
    """
    carry = carry if donate else own_copy(carry)
    collected, sent = [], collections.deque()

    def receive():
        stop, count, parts = sent.popleft()
        outputs = _joined(jax.device_get(parts), count)
        collected.append(outputs)
        return on_chunk is not None and on_chunk(stop, carry, outputs) is True

    end, head = start + steps, 1 if first_alone else chunk
    inner = range(start + head, end, chunk)
    for first, stop in itertools.pairwise(itertools.chain([start], inner, [end])):
        carry, parts = _send(step, carry, constants, first, stop, feed, chunk)
        sent.append((stop, stop - first, parts))
        if len(sent) > ahead and receive():
            break
    while sent:
        receive()
    return carry, _joined(collected, steps)


def _send(step, carry, constants, first, stop, feed, chunk):
    """The carry after a chunk, and parts of its outputs, without waiting for them."""
    # How many steps one call of the compiled program may take; None means no loop.
    slow = parallel.loops_are_slow()
    length, stride = (None, 1) if slow else (chunk, chunk)
    parts = []
    for index in range(first, stop, stride):
        given = () if feed is None else (feed(index, index + stride),)
        here = np.int32(index), np.int32(stop - index)
        carry, outputs = _advance(step, length, carry, constants, *here, given)
        parts.append(outputs)
    return carry, parts


def chunk_length(minibatch_bytes: int) -> int:
    """Steps in a chunk whose minibatches, each of so many bytes, fit `CHUNK_BYTES`."""
    return max(1, min(CHUNK, CHUNK_BYTES // minibatch_bytes))


def program_bytes(
    step: Callable[..., tuple[PyTree, PyTree]],
    carry: PyTree,
    constants: PyTree,
    row: PyTree,
    *,
    chunk: int = CHUNK,
) -> int:
    """What `run_steps` takes of a device, as its compiled program says.

    Arrays may be given as their shapes; `row` is what one step is fed.
    """
    length = None if parallel.loops_are_slow() else chunk
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((length or 1, *x.shape), x.dtype), row
    )
    number = jax.ShapeDtypeStruct((), np.int32)
    lowered = _advance.lower(step, length, carry, constants, number, number, (given,))
    memory = lowered.compile().memory_analysis()
    return (
        # The caller's own, which is copied first.
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(carry))
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def minibatches(
    key: Array, size: int, batch_size: int, *, drop_remainder: bool = False
) -> Callable[[int, int], Int[np.ndarray, "steps batch"]]:
    """The order of shuffled minibatches, for `feed` of `run_steps`.

    Each epoch is a permutation of `0..size-1`, drawn by NumPy from `key` and the
    epoch's number. Epochs follow each other without a gap and minibatches are cut from
    this sequence, so that all have `batch_size` entries.

    With `drop_remainder` an epoch leaves out the last entries of its permutation that
    do not fill a minibatch. Otherwise a minibatch may lie across two epochs, and hold
    an entry twice.
    """
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    used = size // batch_size * batch_size if drop_remainder else size

    @functools.lru_cache(2)
    def epoch(number):
        return np.random.default_rng([*words, number]).permutation(size)[:used]

    def rows(first, stop):
        begin, end = first * batch_size, stop * batch_size
        epochs = range(begin // used, -(-end // used))
        begin, end = begin - epochs[0] * used, end - epochs[0] * used
        cut = np.concatenate([epoch(e) for e in epochs])[begin:end].astype(np.int32)
        return cut.reshape(stop - first, batch_size)

    return rows


def gather_minibatches(
    arrays: PyTree,
    order: Callable[[int, int], Int[np.ndarray, "steps batch"]],
    mesh: Mesh | None,
    first: int,
    stop: int,
) -> PyTree:
    """Minibatches of these steps, `[steps, batch, ...]`: with `partial`, a `feed`.

    Arrays are on the device; or, with a mesh, on the host, from where each device is
    sent its share, filled up with copies of the last sample.
    """
    rows = order(first, stop)
    if mesh is None:
        return _gather(arrays, rows)
    rows = np.pad(rows, [(0, 0), (0, -rows.shape[1] % mesh.size)], mode="edge")
    return parallel.place_gathered(arrays, rows, mesh)


# Apart from the step, whose program would otherwise depend on the number of samples.
@jax.jit
def _gather(arrays, rows):
    return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), arrays)


def _joined(parts, count):
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)


@jax.jit
def own_copy(tree: PyTree) -> PyTree:
    """A copy on the device, whose memory the steps may use again."""
    return jax.tree.map(lambda x: _strong(jnp.copy(x)), tree)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _advance(step, length, carry, constants, first, count, given):
    """`count` steps in a loop of at most `length`, or one without any; and outputs."""
    first = jnp.asarray(first)  # It is NumPy's where nothing is compiled.

    def at(index):
        row = jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, index, 0, False), given
        )
        return first + index, *row

    if length is None:
        carry, outputs = _single(step, carry, constants, *at(0))
        return carry, jax.tree.map(lambda x: jnp.asarray(x)[None], outputs)

    def body(index, values):
        carry, stacked = values
        carry, outputs = _single(step, carry, constants, *at(index))
        put = functools.partial(lax.dynamic_update_index_in_dim, index=index, axis=0)
        return carry, jax.tree.map(put, stacked, outputs)

    # Traced once: the loop's body finds this trace again.
    _, shapes = _single.eval_shape(step, carry, constants, *at(jnp.int32(0)))
    stacked = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)
    return lax.fori_loop(0, count, body, (carry, stacked))


@functools.partial(jax.jit, static_argnums=0)
def _single(step, carry, constants, index, *row):
    after, outputs = step(carry, constants, index, *row)
    return _same_types(carry, after), outputs


def _same_types(before: PyTree, after: PyTree) -> PyTree:
    """`after`, where it is what the next step may start from."""
    old, new = jax.tree.structure(before), jax.tree.structure(after)
    if old != new:
        msg = f"A step must keep the structure of its carry; given {old} it returned {new}."  # noqa: E501
        raise TypeError(msg)

    def check(path, x, y):
        if (jnp.shape(x), jnp.result_type(x)) != (jnp.shape(y), jnp.result_type(y)):
            msg = (
                "A step must keep the shapes and dtypes of its carry; "
                f"{path_name(path) or 'it'} was {jax.typeof(x)} and became "
                f"{jax.typeof(y)}."
            )
            raise TypeError(msg)
        return _strong(y)

    return jax.tree_util.tree_map_with_path(check, before, after)


def _strong(x):
    """Without JAX's weak type, which would make the second step a second program."""
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended):
        return x
    return lax.convert_element_type(x, jnp.result_type(x))
