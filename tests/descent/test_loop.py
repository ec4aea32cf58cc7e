"""Chunks of compiled steps: numbers, sharing, interruption."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import parallel
from jaxunlearn.descent import loop
from jaxunlearn.descent.loop import minibatches, run_steps


@pytest.fixture(params=["steps", "loop"])
def path(request, monkeypatch):
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: request.param == "steps")
    return request.param


@dataclasses.dataclass(frozen=True)
class Decay:
    """`carry <- rate carry + constants[row]`, counting its traces."""

    rate: float
    traces = []

    def __call__(self, carry, constants, index, row):
        self.traces.append(1)
        total = self.rate * carry["total"] + constants[row].sum()
        return {**carry, "total": total}, (total, index)


def start():
    return {"total": jnp.float32(2), "untouched": jnp.ones(3), "key": jax.random.key(0)}


def by_hand(rate, count, rows, constants):
    total, totals = 2.0, []
    for index in range(count):
        total = rate * total + constants[rows(index, index + 1)[0]].sum()
        totals.append(total)
    return totals


@pytest.mark.core
@pytest.mark.parametrize("count", [1, 4, 11])
def test_steps_equal_a_loop_by_hand(path, count):
    rows, constants = minibatches(jax.random.key(1), 7, 3), np.arange(7.0)
    carry, (totals, indices) = run_steps(
        Decay(0.5), start(), jnp.asarray(constants), steps=count, feed=rows, chunk=4
    )
    expected = by_hand(0.5, count, rows, constants)
    np.testing.assert_allclose(totals, expected, rtol=1e-6)
    assert indices.tolist() == list(range(count))
    assert carry["total"] == totals[-1]
    assert isinstance(totals, np.ndarray)


@pytest.mark.core
def test_one_program_serves_every_number_of_steps(path):
    rows, constants = minibatches(jax.random.key(1), 7, 3), jnp.arange(7.0)
    rate = {"steps": 0.3, "loop": 0.7}[path]
    Decay.traces.clear()
    for count in (11, 8, 3):
        # A new object each time: steps are compared by value.
        run_steps(Decay(rate), start(), constants, steps=count, feed=rows, chunk=4)
    assert len(Decay.traces) == 1
    run_steps(Decay(2 * rate), start(), constants, steps=3, feed=rows, chunk=4)
    assert len(Decay.traces) == 2


@pytest.mark.core
def test_a_run_split_anywhere_gives_the_same_bits(path):
    rows = minibatches(jax.random.key(1), 7, 3)
    constants = jax.random.normal(jax.random.key(2), (7,))
    options = {"feed": rows, "chunk": 4}
    whole, (totals, _) = run_steps(Decay(0.9), start(), constants, steps=10, **options)
    half, (first, _) = run_steps(Decay(0.9), start(), constants, steps=3, **options)
    rest, (second, indices) = run_steps(
        Decay(0.9), half, constants, steps=7, start=3, **options
    )
    assert np.concatenate([first, second]).tolist() == totals.tolist()
    assert indices.tolist() == list(range(3, 10))
    assert rest["total"] == whole["total"]


def test_the_carry_passed_in_survives(path):
    carry = start()
    after, _ = run_steps(
        Decay(0.5), carry, jnp.ones(7), steps=5, feed=minibatches(carry["key"], 7, 3)
    )
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(carry))
    assert carry["total"] == 2
    assert after["untouched"].tolist() == [1, 1, 1]


def test_one_array_twice_in_the_carry_is_two(path):
    def step(carry, constants, index):
        one, other = carry
        return (one + 1, other + 2), one

    array = jnp.zeros(2)
    (one, other), _ = run_steps(step, (array, array), None, steps=3)
    assert one.tolist() == [3, 3]
    assert other.tolist() == [6, 6]


def test_the_host_is_visited_between_chunks_in_order(path):
    visits = []

    def on_chunk(stop, carry, outputs):
        visits.append((stop, float(carry), outputs.tolist()))

    def step(carry, constants, index):
        return carry + constants, index

    run_steps(step, 0.0, 1.0, steps=5, start=2, chunk=2, on_chunk=on_chunk)
    assert visits == [(4, 2, [2, 3]), (6, 4, [4, 5]), (7, 5, [6])]


def test_the_device_can_be_one_chunk_ahead_of_the_host(path, monkeypatch):
    happened = []
    send = loop._send

    def watch(*arguments):
        happened.append("send")
        return send(*arguments)

    def on_chunk(stop, carry, outputs):
        happened.append((stop, outputs.tolist()))

    def step(carry, constants, index):
        return carry + constants, index

    monkeypatch.setattr(loop, "_send", watch)
    options = {"chunk": 2, "on_chunk": on_chunk}
    carry, outputs = run_steps(step, 0.0, 1.0, steps=5, ahead=True, **options)
    assert (carry, outputs.tolist()) == (5, [0, 1, 2, 3, 4])
    told = [(2, [0, 1]), (4, [2, 3]), (5, [4])]
    assert happened == ["send", "send", told[0], "send", *told[1:]]


def test_a_carry_that_is_donated_is_gone(path):
    def step(carry, constants, index):
        return carry + 1, None

    kept, given = loop.own_copy(jnp.zeros(3)), loop.own_copy(jnp.zeros(3))
    run_steps(step, kept, None, steps=2)
    run_steps(step, given, None, steps=2, donate=True)
    assert not kept.is_deleted()
    assert given.is_deleted()


def test_an_interruption_between_chunks_gets_out(path):
    seen = []

    def interrupt(stop, carry, outputs):
        seen.append(stop)
        if stop == 4:
            raise KeyboardInterrupt

    def step(carry, constants, index):
        return carry + 1, None

    carry = jnp.zeros(2)
    with pytest.raises(KeyboardInterrupt):
        run_steps(step, carry, None, steps=10, chunk=2, on_chunk=interrupt)
    assert seen == [2, 4]
    assert carry.tolist() == [0, 0]
    run_steps(step, carry, None, steps=2)


def test_weak_types_make_no_second_program(path):
    traces = []

    def step(carry, constants, index):
        traces.append(1)
        return jnp.where(index > 0, 1.0, 2.0), carry

    carry, _ = run_steps(step, 3.0, None, steps=3)
    assert len(traces) == 1
    assert not carry.weak_type


def test_no_outputs_at_all(path):
    def step(carry, constants, index):
        return carry + index, None

    assert run_steps(step, jnp.int32(0), None, steps=4) == (6, None)


def test_the_device_may_hold_what_is_fed(path):
    def feed(first, stop):
        return {"x": jnp.arange(first, stop)}

    def step(carry, constants, index, row):
        return carry + row["x"], row["x"] - index

    carry, differences = run_steps(
        step, jnp.int32(0), None, steps=5, feed=feed, chunk=3
    )
    assert carry == 10
    assert differences.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (
            lambda c: {"a": c["a"].astype(jnp.int32)},
            r"a was float32\[2\].*became int32",
        ),
        (lambda c: {"a": c["a"][:1]}, r"a was float32\[2\].*became float32\[1\]"),
        (lambda c: {"b": c["a"]}, "must keep the structure of its carry"),
    ],
)
def test_a_step_that_changes_the_carry_is_told_so(path, after, words):
    def step(carry, constants, index):
        return after(carry), None

    with pytest.raises(TypeError, match=words):
        run_steps(step, {"a": jnp.ones(2)}, None, steps=2)


def test_convolution_gradients_agree_on_both_paths(monkeypatch):
    def step(kernel, images, index):
        def loss(kernel):
            out = jax.lax.conv_general_dilated(
                images,
                kernel,
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            return (out**2).mean()

        value, gradient = jax.value_and_grad(loss)(kernel)
        return kernel - 0.1 * gradient, value

    keys = jax.random.split(jax.random.key(0))
    kernel = jax.random.normal(keys[0], (3, 3, 2, 2))
    images = jax.random.normal(keys[1], (2, 4, 4, 2))
    results = []
    for slow in (True, False):
        monkeypatch.setattr(parallel, "loops_are_slow", lambda slow=slow: slow)
        results.append(run_steps(step, kernel, images, steps=6, chunk=4))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# Minibatches


def test_every_epoch_is_a_permutation():
    rows = minibatches(jax.random.key(0), 10, 4)
    stream = rows(0, 10).ravel()
    for epoch in range(4):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert stream[:10].tolist() != stream[10:20].tolist()


def test_minibatches_are_the_same_however_they_are_asked_for():
    rows = minibatches(jax.random.key(0), 10, 4)
    whole = rows(0, 9)
    assert whole.shape == (9, 4)
    assert whole.dtype == np.int32
    for first, stop in [(0, 1), (2, 3), (1, 7), (8, 9)]:
        np.testing.assert_array_equal(rows(first, stop), whole[first:stop])


def test_epochs_that_drop_their_remainder_begin_anew():
    whole = minibatches(jax.random.key(0), 10, 10)
    rows = minibatches(jax.random.key(0), 10, 4, drop_remainder=True)(0, 4)
    np.testing.assert_array_equal(rows[:2].ravel(), whole(0, 1)[0, :8])
    np.testing.assert_array_equal(rows[2:].ravel(), whole(1, 2)[0, :8])


def test_minibatches_depend_on_the_key_alone():
    def order(seed):
        return minibatches(jax.random.key(seed), 20, 5)(0, 4).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_the_default_chunk_hides_the_host():
    assert loop.CHUNK >= 10
