"""Streamed second moments against explicit rows, in every order, place and size."""

import contextlib
import dataclasses
import functools
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from networks import (
    SECTIONS,
    Case,
    convolution,
    first_pixels,
    flat,
    quick_compilation,
    together,
)
from oracles import Tape, by_path, double, relative_error

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.capture import convolution as convolving
from jaxunlearn.capture import symmetric_blocks
from jaxunlearn.capture.convolution import Convolution
from jaxunlearn.capture.grams import layer_sums
from jaxunlearn.capture.walk import capture
from jaxunlearn.nullspace.memory import class_passes, moment_bytes


def present(tree) -> dict:
    """The records of a tree by path, without the leaves that have none."""
    return {path: value for path, value in by_path(tree).items() if value is not None}


def assert_close(found, expected, tolerance):
    """Two trees of moments agree, gram by gram and row by row."""
    found, expected = present(found), present(expected)
    assert found.keys() == expected.keys()
    for path, moment in found.items():
        assert relative_error(moment.gram, expected[path].gram) <= tolerance, path
        np.testing.assert_array_equal(moment.rows, expected[path].rows)
        assert moment.layout == expected[path].layout


def expected_gram(tape, path, moment, leaf):
    """The twin's gram, its groups and fan-in in the order of the library's layout."""
    g, d, o = tape.matrix(path).shape
    ours = np.sort(double(moment.layout.to_matrix(leaf))).reshape(g * d, o)
    theirs = np.sort(tape.matrix(path)).reshape(g * d, o)
    place = [np.flatnonzero((theirs == row).all(1)).item() for row in ours]
    place, gram = np.reshape(place, (g, d)), tape.gram(path)
    return np.stack([gram[row[0] // d][np.ix_(row % d, row % d)] for row in place])


def select(section, dtype):
    """Linen and hand-written cases; in float32 those that NNX has too.

    The others are variants that try the walk, which has one precision.
    """
    by_name = {case.name: case for case in SECTIONS[section]}
    return [
        case
        for name, case in by_name.items()
        if not name.startswith("nnx")
        if dtype == np.float64 or f"nnx{name.removeprefix('linen')}" in by_name
    ]


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize(
    ("section", "dtype"),
    [
        *((section, np.float32) for section in SECTIONS if select(section, np.float32)),
        *((section, np.float64) for section in SECTIONS),
    ],
)
def test_moments_are_those_of_explicit_rows(section, dtype):
    cases = select(section, dtype)
    with quick_compilation(), jax.enable_x64(dtype == np.float64):
        classifier = together(cases, dtype)
        images = np.random.default_rng(0).normal(size=(5, 5, 6, 5)).astype(np.float32)
        # Two batches, the second of them padded.
        moments = ju.second_moments(classifier, images.astype(dtype), batch_size=4)
    errors = {}
    for case in cases:
        own = classifier.replace(params=classifier.params[case.name])
        tape, _ = case.run_twin(own, first_pixels(images, case.image_shape))
        found, leaves = by_path(moments[case.name]), by_path(own.params)
        assert found.keys() == leaves.keys()
        assert present(moments[case.name]).keys() == tape.paths(), case.name
        for path in tape.paths():
            moment = found[path]
            # A network that computes in less than float64 has moments in float32.
            double_rows = dtype == np.float64 and case.error[1] < 1e-6
            assert moment.gram.dtype == (np.float64 if double_rows else np.float32)
            assert np.isclose(moment.rows, np.mean([len(r) for r in tape.rows(path)]))
            truth = expected_gram(tape, path, moment, leaves[path])
            error = relative_error(moment.gram, truth)
            if error > (1e-12 if double_rows else 1e-5):
                errors[case.name, path] = error
    assert not errors


class Small(nn.Module):
    """A strided convolution and a head."""

    @nn.compact
    def __call__(self, images):
        x = jnp.tanh(nn.Conv(3, (2, 2), strides=2, name="conv")(images))
        return nn.Dense(7, name="head")(x.reshape(images.shape[0], -1))


def _small(tape, images):
    x = tape.conv("conv/kernel", images, features=3, kernel_size=(2, 2), strides=2)
    return tape.dense("head/kernel", flat(np.tanh(x)))


SMALL = Case("small", Small, _small, (4, 3, 2))
POSITIONS = {"conv/kernel": 4, "head/kernel": 1}  # rows of one image


@functools.cache
def small():
    classifier, images = SMALL.classifier(), np.asarray(SMALL.images(23))
    return classifier, images, ju.second_moments(classifier, images)


def explicit(images) -> Tape:
    return SMALL.run_twin(small()[0], images)[0]


def check_small(moments, images, tolerance=1e-5):
    """Moments without a class axis are those of these images."""
    tape, found = explicit(images), present(moments)
    assert found.keys() == tape.paths()
    for path, moment in found.items():
        assert relative_error(moment.gram, tape.gram(path)) <= tolerance
        assert moment.rows == len(images) * POSITIONS[path]


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("batch_size", [1, 7, 23])
def test_the_batch_size_does_not_matter(batch_size):
    classifier, images, whole = small()  # 23 images in a batch of 256
    check_small(whole, images)
    moments = ju.second_moments(classifier, images, batch_size=batch_size)
    assert_close(moments, whole, 1e-6)


def test_the_order_of_the_images_does_not_matter():
    classifier, images, whole = small()
    shuffled = np.random.default_rng(0).permutation(images)
    assert_close(ju.second_moments(classifier, shuffled, batch_size=7), whole, 1e-6)


@pytest.mark.long
@pytest.mark.core
def test_fifty_thousand_rows_lose_no_digits():
    """Compensated sums; and a float32 sum without compensation fails the same bar."""
    classifier = one_kernel(3)
    rows = np.random.default_rng(0).uniform(0.4, 0.6, (50_000, 3)).astype(np.float32)
    images = rows.reshape(-1, 1, 1, 3)
    truth = double(rows).T @ double(rows)

    naive = np.zeros((3, 3), np.float32)
    for start in range(0, len(rows), 7):
        naive += rows[start : start + 7].T @ rows[start : start + 7]
    assert relative_error(naive, truth) > 1e-6

    few, many = (
        ju.second_moments(classifier, images, batch_size=size)["layer"]["kernel"]
        for size in (7, 256)
    )
    assert relative_error(few.gram[0], truth) <= 1e-6
    assert relative_error(few.gram, many.gram) <= 1e-6
    assert few.rows == many.rows == 50_000


class Flat(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, images):
        return self.layer(images.reshape(images.shape[0], -1))


def one_kernel(d) -> ju.Classifier:
    model = Flat(nn.Dense(1, use_bias=False))
    return ju.freeze(model, {"params": {"layer": {"kernel": jnp.ones((d, 1))}}})


@pytest.mark.core
@pytest.mark.parametrize("devices", [2, 8])
def test_moments_of_shards_add_up(devices):
    """Inside `shard_map`, where the weights are the same on every device."""
    classifier, images, _ = small()
    images = images[:16]
    mesh = jax.make_mesh((devices,), ("shard",))
    split, whole = PartitionSpec("shard"), PartitionSpec()

    def add(classifier, images):
        moments = ju.second_moments(classifier, images)
        return jax.tree.map(lambda value: jax.lax.psum(value, "shard"), moments)

    moments = jax.jit(
        jax.shard_map(add, mesh=mesh, in_specs=(whole, split), out_specs=whole)
    )(
        jax.device_put(classifier, NamedSharding(mesh, whole)),
        jax.device_put(images, NamedSharding(mesh, split)),
    )
    check_small(moments, images)


def test_moments_can_be_compiled():
    classifier, images, whole = small()
    assert_close(jax.jit(ju.second_moments)(classifier, images), whole, 1e-6)
    labels = jnp.arange(23) % 4
    compiled = jax.jit(functools.partial(ju.class_moments, num_classes=7))
    expected = ju.class_moments(classifier, images, labels, num_classes=7)
    assert_close(compiled(classifier, images, labels), expected, 1e-6)


def test_moments_of_pixels_are_those_of_standardised_images():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 3, 2)).astype(np.uint8)
    preprocess = ju.Preprocess((0.25, 0.5), (0.5, 0.125))
    classifier = small()[0].replace(preprocess=preprocess)
    moments = ju.second_moments(classifier, pixels, batch_size=4)
    check_small(moments, (pixels / 255 - np.asarray([0.25, 0.5])) / [0.5, 0.125])


# Classes.


@functools.cache
def classes():
    """Seven classes, shuffled; nothing is of class 3."""
    classifier, images, _ = small()
    labels = np.random.default_rng(5).choice([0, 1, 2, 4, 5, 6], len(images))
    assert len(set(labels)) == 6
    moments = ju.class_moments(classifier, images, labels, num_classes=7, batch_size=4)
    return labels, moments


def entry(moments, index):
    """One class of a tree of class moments."""
    return jax.tree.map(
        lambda m: ju.Moment(m.gram[index], m.rows[index], m.layout),
        moments,
        is_leaf=lambda node: isinstance(node, ju.Moment),
    )


@pytest.mark.core
def test_every_class_has_the_moment_of_its_own_images():
    labels, moments = classes()
    for moment in present(moments).values():
        assert moment.classes == tuple(range(7))
        assert len(moment.gram) == len(moment.rows) == 7
    for label in range(7):
        check_small(entry(moments, label), small()[1][labels == label])


def test_a_class_without_images_is_zero():
    for moment in present(entry(classes()[1], 3)).values():
        assert moment.rows == 0
        assert not np.any(moment.gram)


@pytest.mark.core
def test_classes_add_up_to_all_images():
    labels, moments = classes()
    assert_close(ju.sum_classes(moments, range(7)), small()[2], 1e-6)
    for path, moment in present(ju.sum_classes(moments, [4, 1])).items():
        own = explicit(small()[1][np.isin(labels, [1, 4])])
        assert relative_error(moment.gram, own.gram(path)) <= 1e-5
        assert moment.classes is None


@pytest.mark.core
def test_retained_is_total_less_forgotten():
    _, moments = classes()
    total, forgotten = small()[2], ju.sum_classes(moments, [2, 5])
    retained = jax.tree.map(jnp.subtract, total, forgotten)
    assert_close(retained, ju.sum_classes(moments, [0, 1, 3, 4, 6]), 1e-6)


@pytest.mark.core
def test_named_classes_leave_one_entry_for_all_others():
    labels, _ = classes()
    classifier, images, _ = small()
    moments = ju.class_moments(
        classifier, images, labels, num_classes=7, classes=(3, 5), batch_size=4
    )
    groups = [labels == 3, labels == 5, (labels != 3) & (labels != 5)]
    for moment in present(moments).values():
        assert moment.classes == (3, 5, "others")
    for index, group in enumerate(groups):
        check_small(entry(moments, index), images[group])
    check_small(ju.sum_classes(moments, [5, "others"]), images)
    with pytest.raises(ValueError, match=r"\(3, 5, 'others'\).*\[4\]"):
        ju.sum_classes(moments, [4, 5])


def test_equal_weight_divides_each_class_by_its_trace():
    labels, moments = classes()
    weighted = ju.sum_classes(moments, [3, 6, 1], equal_weight=True)
    own = [explicit(small()[1][labels == label]) for label in (6, 1)]  # 3 is empty
    for path, moment in present(weighted).items():
        grams = [tape.gram(path) for tape in own]
        expected = sum(gram / np.trace(gram[0]) for gram in grams)
        assert relative_error(moment.gram, expected) <= 1e-5
        assert np.isclose(np.trace(moment.gram[0]), 2)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ([7], r"\[7\]"),
        ([1, 9, 8], r"\[9, 8\]"),
        ([], "at least one"),
        ([2, 2], "distinct"),
    ],
)
def test_classes_that_the_moments_do_not_hold_are_refused(wanted, words):
    with pytest.raises(ValueError, match=words):
        ju.sum_classes(classes()[1], wanted)


def test_moments_without_a_class_axis_have_no_classes_to_add():
    with pytest.raises(TypeError, match="class_moments"):
        ju.sum_classes(small()[2], [0])


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (np.full(23, 7), ValueError, "0 to 6.*7"),
        (np.full(23, -1), ValueError, "0 to 6.*-1"),
        (np.zeros(23), TypeError, "integers"),
        (np.zeros(23, bool), TypeError, "integers"),
        (np.eye(23, dtype=int), ValueError, r"\(23, 23\)"),
        (np.zeros(22, int), ValueError, "22"),
        (None, ValueError, "labels"),
    ],
    ids=["large", "negative", "float", "boolean", "one-hot", "short", "missing"],
)
def test_wrong_labels_are_refused(labels, error, words):
    classifier, images, _ = small()
    with pytest.raises(error, match=words):
        ju.class_moments(classifier, images, labels, num_classes=7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": (1, 1)}, "distinct"),
        ({"classes": (7,)}, r"0\.\.6.*7"),
        ({"batch_size": 0}, "batch_size.*0"),
        ({"num_classes": 0}, "num_classes.*0"),
        ({"mesh": jax.make_mesh((2, 2), ("a", "b"))}, "one axis"),
    ],
    ids=["twice", "unknown", "batch", "none", "mesh"],
)
def test_wrong_options_are_refused(options, words):
    classifier, images, _ = small()
    with pytest.raises(ValueError, match=words):
        ju.class_moments(
            classifier, images, np.zeros(23, int), **{"num_classes": 7, **options}
        )


# Streams.


class Stream:
    """A re-iterable of batches that counts what is read of it."""

    def __init__(self, batches, watch=lambda: None):
        self.batches, self.watch, self.read = batches, watch, 0

    def __iter__(self):
        for batch in self.batches:
            self.read += 1
            self.watch()
            yield batch


@pytest.mark.core
@pytest.mark.parametrize("sizes", [(23,), (1, 9, 2, 11), (5, 5, 5, 5, 3)])
def test_a_stream_of_batches_is_the_array_that_they_make(sizes):
    classifier, images, whole = small()
    stops = np.cumsum(sizes)
    stream = Stream([images[a - n : a] for a, n in zip(stops, sizes, strict=True)])
    assert_close(ju.second_moments(classifier, stream, batch_size=4), whole, 1e-6)


@pytest.mark.core
def test_a_stream_of_labelled_batches_is_the_array_that_they_make():
    classifier, images, _ = small()
    labels, moments = classes()
    stream = Stream(
        list(zip(np.split(images, [4, 15]), np.split(labels, [4, 15]), strict=True))
    )
    found = ju.class_moments(classifier, stream, None, num_classes=7, batch_size=4)
    assert_close(found, moments, 1e-6)


def test_a_stream_that_can_be_read_only_once_is_refused():
    classifier, images, _ = small()
    with pytest.raises(TypeError, match="once"):
        ju.second_moments(classifier, (batch for batch in (images, images)))


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="empty|no "):
        ju.second_moments(small()[0], Stream([]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: Stream([x[:9], x[9:]])])
def test_images_that_are_not_finite_are_refused(value, wrap):
    classifier, images, _ = small()
    broken = images.copy()
    broken[17, 2, 1, 0] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        ju.second_moments(classifier, wrap(broken))
    with pytest.raises(ValueError, match="NaN or infinite"):
        ju.class_moments(classifier, broken, np.zeros(23, int), num_classes=2)


@pytest.mark.core
def test_memory_does_not_grow_with_the_data():
    classifier, images, _ = small()

    def live(count):
        sizes = []
        stream = Stream(
            [images[:2]] * count,
            lambda: sizes.append(sum(array.nbytes for array in jax.live_arrays())),
        )
        ju.second_moments(classifier, stream, batch_size=2)
        assert stream.read >= count
        return max(sizes)

    live(2)  # compiles, and fills caches
    assert live(200) == live(10)


def test_moments_larger_than_memory_are_refused_before_the_pass():
    """A million classes of a fan-in of a thousand: more than four terabytes."""
    classifier = one_kernel(1000)
    images = np.zeros((1, 10, 10, 10), np.float32)
    stream = Stream([(images, np.zeros(1, int))] * 50)
    words = r"[4-9],\d{3},\d{3},\d{3},\d{3} bytes.*classes=.*\d+ passes.*class_passes"
    with pytest.raises(ValueError, match=words):
        ju.class_moments(classifier, stream, None, num_classes=1_000_000)
    assert stream.read <= 3


@pytest.mark.long
@pytest.mark.parametrize(("held", "groups"), [(9, 1), (8, 1), (7, 2), (4, 3), (2, 7)])
def test_classes_are_split_into_passes_that_fit(held, groups, monkeypatch):
    """Into as few as can be, each of which is not refused with that much memory."""
    classifier, images, _ = small()
    labels, by_class = classes()
    limit = held * moment_bytes(classifier, images)
    passes = class_passes(classifier, images, 7, limit=limit)
    assert len(passes) == groups
    assert sum(passes, ()) == tuple(range(7))
    monkeypatch.setattr(parallel, "free_memory", lambda devices: limit)
    call = functools.partial(ju.class_moments, classifier, images, labels)
    for group in passes if held == 4 else passes[:1]:
        moments = call(num_classes=7, classes=group)
        for path, moment in present(moments).items():
            assert moment.classes == (*group, "others")
            whole = np.asarray(present(by_class)[path].gram)
            assert relative_error(moment.gram[:-1], whole[list(group)]) <= 1e-6
    if held < 7:
        with pytest.raises(ValueError, match=f"{groups} passes of up to {held - 1} "):
            call(num_classes=7)


def test_one_class_that_does_not_fit_is_refused():
    classifier, images, _ = small()
    with pytest.raises(ValueError, match=r"one class and of all others .* set limit"):
        class_passes(classifier, images, 7, limit=100)


# Compilation.


class Counted(nn.Module):
    """Notes every trace of itself."""

    traces = []

    @nn.compact
    def __call__(self, images):
        self.traces.append(images.shape)
        return nn.Dense(3)(images.reshape(images.shape[0], -1))


@pytest.mark.core
def test_there_is_one_trace_for_any_number_of_batches(caplog):
    variables = Counted().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    classifier = ju.freeze(Counted(), variables)
    images = np.random.default_rng(0).normal(size=(40, 2, 2, 1)).astype(np.float32)

    def traces(images, batch_size=4):
        Counted.traces.clear()
        ju.second_moments(classifier, images, batch_size=batch_size)
        return len(Counted.traces)

    first = traces(images[:8])
    assert first > 0
    # Ten batches of the same shape, other weights: nothing more, and nothing compiled.
    classifier = classifier.replace(params=jax.tree.map(jnp.sin, classifier.params))
    with jax.log_compiles():
        assert traces(images) <= first
        compiled = [r for r in caplog.records if "Finished XLA compil" in r.message]
        assert not compiled
        traces(images, batch_size=5)  # another shape, so that the log can speak
    assert any("Finished XLA compil" in record.message for record in caplog.records)


# Convolutions of every shape.


@st.composite
def convolutions(draw):
    """Options of a two-dimensional convolution that has outputs."""

    def pair(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(2))

    groups = draw(st.integers(1, 3))
    spec = {
        "kernel_size": pair(1, 4),
        "strides": draw(st.sampled_from([(1, 1), (1, 1), pair(1, 3)])),
        "padding": draw(
            st.one_of(
                st.sampled_from(["SAME", "VALID", "CIRCULAR"]),
                st.tuples(*(st.tuples(*(st.integers(0, 4),) * 2),) * 2),
            )
        ),
        "kernel_dilation": pair(1, 3),
        "feature_group_count": groups,
        "features": groups * draw(st.integers(1, 2)),
    }
    if not isinstance(spec["padding"], str):
        spec["input_dilation"] = pair(1, 2)
    image_shape = (*pair(4, 7), groups * draw(st.integers(1, 2)))
    if spec["padding"] not in ("SAME", "CIRCULAR"):
        pads = [0, 0] if spec["padding"] == "VALID" else map(sum, spec["padding"])
        for axis, pad in enumerate(pads):
            reach = (spec["kernel_size"][axis] - 1) * spec["kernel_dilation"][axis]
            assume(reach < image_shape[axis] + pad)
    return convolution("any", image_shape, flavours=("linen",), **spec)[0]


@pytest.mark.long
@pytest.mark.core
@settings(max_examples=6, deadline=None)
@given(convolutions())
def test_any_convolution_has_the_moment_of_its_patches(case):
    classifier, images = case.classifier(), case.images(2)
    both = jax.jit(lambda *args: (ju.second_moments(*args), ju.layer_inputs(*args)))
    moments, inputs = both(classifier, images)
    tape, _ = case.run_twin(classifier, images)
    moment, rows = moments["layer"]["kernel"], inputs["layer"]["kernel"].inputs
    truth = tape.gram("layer/kernel")
    assert moment.rows == rows.shape[1] == tape.count("layer/kernel")
    assert relative_error(moment.gram, truth) <= 1e-5
    assert relative_error(rows.mT @ rows, truth) <= 1e-5


class Shifted(Convolution):
    """By offsets, whatever the costs say."""

    by_offsets = True


class Patched(Convolution):
    """By blocks of patches, whatever the costs say."""

    by_offsets = False


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("in_parts", [False, True])
@settings(max_examples=5, deadline=None)
@given(case=convolutions())
def test_every_formulation_has_the_moment_of_the_rows(in_parts, case):
    """Those that costs would choose only for many channels, and for large batches."""
    captured = capture(case.classifier(), case.images(5))
    ((key, use),) = captured.uses.items()
    product = dataclasses.asdict(use.product)
    kinds = (Shifted, Patched) if set(use.product.stride) == {1} else (Patched,)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        if in_parts:
            small = [(parallel, "product_bytes", lambda: 1), (convolving, "_ROWS", 1)]
            # With blocks as narrow as may be, and results that cost nothing to add.
            small += [(symmetric_blocks, "_BLOCK", 1)]
            for where, name, value in small:
                stack.enter_context(mock.patch.object(where, name, value))
        x = jnp.asarray(double(captured.operands[key][0]))
        rows = double(use.product.rows(x))
        for kind in kinds:
            gram = kind(**product).whole(kind(**product).sums(x))
            assert gram.dtype == np.float64
            assert relative_error(gram, rows.mT @ rows) <= 1e-12


@pytest.mark.long
@pytest.mark.core
def test_a_wide_layer_has_the_moment_of_its_rows():
    """A dense layer in symmetric blocks, and what costs choose for many channels."""

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = nn.Conv(20, (3, 3), name="narrow")(images)
            x = nn.Conv(24, (3, 3), name="shifted")(jnp.tanh(x))
            x = nn.Conv(8, (3, 3), 2, name="strided")(jnp.tanh(x))
            return nn.Dense(3, name="head")(x.reshape(images.shape[0], -1))

    images = np.random.default_rng(0).normal(size=(5, 12, 12, 2)).astype(np.float32)
    classifier = ju.freeze(Wide(), Wide().init(jax.random.key(0), images))
    moments, inputs = (
        by_path(f(classifier, images)) for f in (ju.second_moments, ju.layer_inputs)
    )
    blocks = {}
    for layer in layer_sums(classifier, jnp.asarray(images), jnp.ones(5)):
        if layer is not None:
            ((product, layout),) = layer.products
            blocks[layout.fan_in] = layer.parts[0].shape[2:]
    assert blocks[180] == (29, 20, 20)
    assert blocks[288] == (3, 144, 144)
    for path in ("narrow", "shifted", "strided", "head"):
        rows = double(inputs[f"{path}/kernel"].inputs)
        gram = moments[f"{path}/kernel"].gram
        assert relative_error(gram, rows.mT @ rows) <= 1e-5
