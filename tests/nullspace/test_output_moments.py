"""Output moments against explicit Jacobians of NumPy twins, in every order and size."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import SECTIONS, Case, first_pixels, flat, quick_compilation, together
from oracles import Tape, by_path, double, output_jacobians, relative_error

import jaxunlearn as ju

KEY = jax.random.key(5)


def log_softmax_gradient(logits, label, exclude=()):
    """Of log p(label) with respect to the logits, in float64."""
    kept = np.array([c not in exclude for c in range(len(logits))])
    e = np.where(kept, np.exp(logits - logits[kept].max()), 0)
    return np.eye(len(logits))[label] - e / e.sum()


def explicit_grams(case, params, image, slope) -> dict[str, np.ndarray]:
    """`sum(g gT) [g, o, o]` of each path, `slope` the gradient at the logits.

    Groups and outputs are in the oracle's order, with the matrices `[g, d, o]`.
    """
    grams, matrices = collections.defaultdict(dict), {}
    for path, at, matrix, jacobian in output_jacobians(case.twin, params, image):
        gradient = np.tensordot(slope, jacobian, 1)  # [g, n, o]
        gram = np.einsum("gno,gnp->gop", gradient, gradient)
        grams[path][at] = grams[path].get(at, 0) + gram
        matrices[path, at] = matrix
    return {
        path: (
            np.concatenate([own[at] for at in sorted(own)]),
            np.concatenate([matrices[path, at] for at in sorted(own)]),
        )
        for path, own in grams.items()
    }


def in_order_of(layout, leaf, gram, matrix):
    """The oracle's gram, its groups and outputs in the order of the layout."""
    ours = np.sort(double(layout.to_matrix(leaf)).swapaxes(1, 2))
    theirs = np.sort(matrix.swapaxes(1, 2))
    g, o, d = theirs.shape
    assert ours.shape == theirs.shape
    theirs = theirs.reshape(g * o, d)
    place = [np.flatnonzero((theirs == row).all(1)) for row in ours.reshape(g * o, d)]
    assert all(len(found) == 1 for found in place), "columns are not told apart"
    place = np.reshape(place, (g, o))
    return np.stack([gram[row[0] // o][np.ix_(row % o, row % o)] for row in place])


def errors_of(cases, classifier, images, labels, moments, single=False):
    """By case and path, the relative error of each gram; rows are checked too."""
    inputs = ju.second_moments(classifier, images)
    logits = double(classifier(images))
    slopes = [log_softmax_gradient(*pair) for pair in zip(logits, labels, strict=True)]
    errors, start = {}, 0
    for case in cases:
        held = [tree if single else tree[case.name] for tree in (moments, inputs)]
        found, rows = map(by_path, held)
        params = classifier.params if single else classifier.params[case.name]
        pixels = first_pixels(np.asarray(images), case.image_shape)
        leaves, truth, width = by_path(params), {}, 0
        for image, slope in zip(pixels, slopes, strict=True):
            width = case.twin(Tape(params), double(image)[None]).size
            own = explicit_grams(case, params, image, slope[start : start + width])
            for path, (gram, matrix) in own.items():
                truth[path] = (truth.get(path, (0,))[0] + gram, matrix)
        start += width
        assert {path for path, m in found.items() if m is not None} == set(truth)
        for path, (gram, matrix) in truth.items():
            moment = found[path]
            assert moment.side == "outputs"
            assert moment.layout == rows[path].layout
            assert moment.rows == rows[path].rows
            gram = in_order_of(moment.layout, leaves[path], gram, matrix)
            # Of a branch that was not taken it is zero.
            assert case.branches or np.linalg.norm(gram) > 0, (case.name, path)
            errors[case.name, path] = relative_error(moment.gram, gram)
    return errors


def select(section, dtype):
    """Linen and hand-written cases that compute in what they are given."""
    left_out = ["bfloat16"]
    if dtype == np.float32:
        left_out.append("negative padding")  # XLA for CPUs reads beyond the image.
    return [
        case
        for case in SECTIONS[section]
        if not case.name.startswith("nnx")
        and not any(word in case.name for word in left_out)
    ]


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("section", SECTIONS)
def test_output_moments_are_those_of_explicit_jacobians(section, dtype):
    """Every layer kind, all of a section in one network, whose softmax joins them."""
    cases, labels = select(section, dtype), np.array([1, 0, 3])
    with quick_compilation(), jax.enable_x64(dtype == np.float64):
        classifier = together(cases, dtype)
        images = np.random.default_rng(0).normal(size=(3, 5, 6, 5)).astype(dtype)
        given = {"key": KEY, "labels": labels, "batch_size": 2}
        moments = ju.output_moments(classifier, images, **given)
        errors = errors_of(cases, classifier, images, labels, moments)
    limit = 1e-12 if dtype == np.float64 else 1e-5
    assert not {at: error for at, error in errors.items() if not error <= limit}


class Small(nn.Module):
    """A strided convolution in two groups, and a layer used twice."""

    @nn.compact
    def __call__(self, images):
        conv = nn.Conv(4, (2, 2), 2, feature_group_count=2, name="conv")
        dense = nn.Dense(5, name="dense")
        x = jnp.tanh(conv(images)).reshape(images.shape[0], -1)[:, :5]
        return dense(jnp.tanh(dense(x)))


def _small(tape, images):
    spec = {"features": 4, "kernel_size": (2, 2), "strides": 2}
    x = tape.conv("conv/kernel", images, **spec, feature_group_count=2)
    x = np.tanh(flat(x)[:, :5])
    return tape.dense("dense/kernel", np.tanh(tape.dense("dense/kernel", x)))


SMALL = Case("small", Small, _small, (4, 3, 2))


@functools.cache
def small():
    classifier, images = SMALL.classifier(), np.asarray(SMALL.images(23))
    with quick_compilation():
        return classifier, images, ju.output_moments(classifier, images, key=KEY)


def drawn(classifier, images, exclude=()):
    """Each image's label, one by one."""
    logits = np.array(classifier(images))
    logits[:, list(exclude)] = -np.inf
    keys = (jax.random.fold_in(KEY, index) for index in range(len(images)))
    draw = jax.jit(jax.random.categorical)
    return np.array([draw(k, own) for k, own in zip(keys, logits, strict=True)])


def assert_close(found, expected, tolerance=1e-6):
    found, expected = by_path(found), by_path(expected)
    assert found.keys() == expected.keys()
    for path, moment in found.items():
        if moment is None:
            assert expected[path] is None
            continue
        assert relative_error(moment.gram, expected[path].gram) <= tolerance, path
        assert moment.rows == expected[path].rows


@pytest.mark.core
def test_drawn_labels_are_each_images_own():
    classifier, images, whole = small()
    labels = drawn(classifier, images)
    assert len(set(labels.tolist())) > 2
    (errors,) = [errors_of([SMALL], classifier, images, labels, whole, single=True)]
    assert max(errors.values()) <= 1e-5
    given = ju.output_moments(classifier, images, key=KEY, labels=labels)
    assert_close(given, whole)
    other = ju.output_moments(classifier, images, key=jax.random.key(6))
    gap = relative_error(other["dense"]["kernel"].gram, whole["dense"]["kernel"].gram)
    assert gap > 1e-2


@pytest.mark.core
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_does_not_matter(batch_size):
    classifier, images, whole = small()
    options = {"key": KEY, "batch_size": batch_size}
    assert_close(ju.output_moments(classifier, images, **options), whole)
    stream = [images[:4], images[4:5], images[5:]]
    assert_close(ju.output_moments(classifier, stream, **options), whole)


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("devices", [2, 4])
def test_the_number_of_devices_does_not_matter(devices):
    classifier, images, whole = small()
    mesh = jax.make_mesh((devices,), ("i",))
    options = {"key": KEY, "batch_size": 10, "mesh": mesh}
    assert_close(ju.output_moments(classifier, images, **options), whole)


@pytest.mark.long
def test_inside_shard_map_gradients_are_those_of_the_shard():
    """Under the check of what varies over devices, whose transpose sums over them."""
    classifier, images, _ = small()
    images, labels = images[:8], np.arange(8) % 5
    whole = ju.output_moments(classifier, images, key=KEY, labels=labels)
    mesh = jax.make_mesh((2,), ("i",))
    split, all_of = jax.sharding.PartitionSpec("i"), jax.sharding.PartitionSpec()

    def own(classifier, images, labels):
        moments = ju.output_moments(classifier, images, key=KEY, labels=labels)
        return jax.tree.map(lambda x: jax.lax.psum(x, "i"), moments)

    specs = {"in_specs": (all_of, split, split), "out_specs": all_of}
    run = jax.jit(jax.shard_map(own, mesh=mesh, **specs))
    over = functools.partial(jax.sharding.NamedSharding, mesh)
    given = (classifier, images, jnp.asarray(labels))
    given = [
        jax.device_put(x, over(spec))
        for x, spec in zip(given, specs["in_specs"], strict=True)
    ]
    assert_close(run(*given), whole)


@pytest.mark.core
def test_excluded_logits_are_masked_out():
    """No label is drawn of them, and their gradient is zero."""
    classifier, images, _ = small()
    exclude = (1, 4)
    moments = ju.output_moments(classifier, images, key=KEY, exclude=exclude)
    labels, logits = drawn(classifier, images, exclude), double(classifier(images))
    truth = {}
    for image, label, own in zip(images, labels, logits, strict=True):
        slope = log_softmax_gradient(own, label, exclude)
        assert not slope[list(exclude)].any()
        for path, (gram, matrix) in explicit_grams(
            SMALL, classifier.params, image, slope
        ).items():
            truth[path] = (truth.get(path, (0,))[0] + gram, matrix)
    for path, moment in by_path(moments).items():
        if moment is not None:
            leaf = by_path(classifier.params)[path]
            gram = in_order_of(moment.layout, leaf, *truth[path])
            assert relative_error(moment.gram, gram) <= 1e-5


@pytest.mark.long
@pytest.mark.core
def test_of_one_row_the_gradient_of_a_weight_is_its_input_by_the_output_gradient():
    """K-FAC's identity `dW = x gT`; so is that of a convolution with one position."""

    class One(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = nn.Conv(3, (4, 3), padding="VALID", name="conv")(images)
            return nn.Dense(4, name="dense")(jnp.tanh(x).reshape(len(images), -1))

    case = Case("one", One, None, (4, 3, 2))
    classifier, images = case.classifier(), case.images(1)
    given = {"key": KEY, "labels": [2]}
    outputs = by_path(ju.output_moments(classifier, images, **given))
    inputs = by_path(ju.second_moments(classifier, images))

    def log_likelihood(params):
        return jax.nn.log_softmax(classifier.replace(params=params)(images))[0, 2]

    gradients = by_path(jax.grad(log_likelihood)(classifier.params))
    for path in ("conv/kernel", "dense/kernel"):
        moment, own = outputs[path], inputs[path]
        assert moment.rows == own.rows == 1
        (dW,) = double(moment.layout.to_matrix(gradients[path]))
        squares = np.trace(double(own.gram)[0]), np.trace(double(moment.gram)[0])
        assert relative_error(dW.T @ dW, squares[0] * double(moment.gram)[0]) <= 1e-5
        assert relative_error(dW @ dW.T, squares[1] * double(own.gram)[0]) <= 1e-5


def test_a_moment_of_the_other_side_is_refused():
    classifier, images, outputs = small()
    with pytest.raises(ValueError, match="moment of inputs is needed.*second_moments"):
        ju.subspaces(outputs, rank=1)
    with pytest.raises(ValueError, match="moment of inputs is needed.*second_moments"):
        ju.drift(outputs, classifier.params, classifier.params)


def _after(params, state, images):
    x = images.reshape(len(images), -1) @ params

    def step(carry):
        return carry[0] + 1, carry[1] / 2

    going = lambda carry: (carry[0] < 9) & (jnp.abs(carry[1]).max() > 1)  # noqa: E731
    return jax.vmap(lambda row: jax.lax.while_loop(going, step, (0, row))[1])(x)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"labels": [0, 1]}, ValueError, "one class number for each of the 23 images"),
        ({"labels": np.full(23, 5)}, ValueError, "labels must be classes 0 to 4"),
        ({"labels": np.full(23, 2), "exclude": (2,)}, ValueError, "none of exclude"),
        ({"exclude": (7,)}, ValueError, "exclude names class 7"),
        ({"exclude": range(5)}, ValueError, "exclude names all 5 classes"),
        ({"key": jax.random.PRNGKey(0)}, TypeError, r"key must be one jax\.random"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(change, error, words):
    classifier, images, _ = small()
    with pytest.raises(error, match=words):
        ju.output_moments(classifier, images, **{"key": KEY, **change})


def test_labels_beside_a_stream_and_a_network_without_gradients_are_refused():
    classifier, images, _ = small()
    with pytest.raises(TypeError, match="labels are given beside a stream"):
        ju.output_moments(classifier, [images], key=KEY, labels=np.zeros(23, int))
    looping = ju.freeze(ju.Function(_after, jnp.ones((24, 5)) / 4))
    with pytest.raises(ValueError, match="while loop .* write the loop as a scan"):
        ju.output_moments(looping, images, key=KEY)
