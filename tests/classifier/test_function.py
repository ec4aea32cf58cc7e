"""Any pure function as a classifier: everything that Flax has, but training."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxunlearn as ju
from jaxunlearn import training

pytestmark = pytest.mark.long

SHAPE, CLASSES = (8, 8, 1), 4
PREPROCESS = ju.Preprocess(mean=0.5, std=0.25)


def apply(params, state, images):
    """A convolution, normalisation by running statistics, and two dense layers."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(
        images, params["kernel"], (2, 2), "SAME", dimension_numbers=numbers
    )
    x = (x - state["mean"]) * lax.rsqrt(state["variance"] + 1e-5)
    x = jax.nn.relu(x + params["bias"]).reshape(images.shape[0], -1)
    x = jax.nn.relu(x @ params["hidden"])
    return x @ params["head"]


def draw(seed=0):
    shapes = {"kernel": (3, 3, 1, 4), "bias": (1, 1, 1, 4)}
    shapes |= {"hidden": (64, 16), "head": (16, CLASSES)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    params = {
        name: jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    state = {"mean": jnp.zeros((1, 1, 1, 4)), "variance": jnp.ones((1, 1, 1, 4))}
    return params, state


def frozen(seed=0):
    return ju.freeze(ju.Function(apply, *draw(seed)), preprocess=PREPROCESS)


def samples(count=24, seed=0):
    """Images that tell their class by which quarter is bright."""
    labels = np.arange(count) % CLASSES
    images = np.random.default_rng(seed).integers(0, 100, (count, *SHAPE))
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[row : row + 4, column : column + 4] += 100
    return ju.Data(images.astype(np.uint8), labels)


@pytest.fixture(scope="module")
def trained():
    """Trained by hand, as the user of another framework would."""
    classifier, data = frozen(), samples(64)
    images = classifier.prepare(data.images)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, memory):
        def loss(params):
            logits = apply(params, classifier.state, images)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, data.labels
            ).mean()

        updates, memory = tx.update(jax.grad(loss)(params), memory, params)
        return optax.apply_updates(params, updates), memory

    params = classifier.params
    memory = tx.init(params)
    for _ in range(60):
        params, memory = step(params, memory)
    return classifier.replace(params=params)


def present(tree):
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: hasattr(node, "layout")
    )
    return {path[0].key: record for path, record in leaves}


@pytest.mark.core
def test_logits_are_those_of_the_function():
    classifier, data = frozen(), samples()
    expected = apply(*draw(), classifier.prepare(data.images))
    np.testing.assert_allclose(classifier(data.images), expected, atol=1e-6)
    assert ju.evaluate(classifier, data, [1]).per_class.shape == (CLASSES,)


@pytest.mark.core
def test_layer_inputs_moments_and_certificates_are_those_of_the_weights():
    classifier, images = frozen(), samples().images
    table = {record.path: record for record in ju.layer_table(classifier, images)}
    assert {path: (r.kind, r.d, r.rows) for path, r in table.items()} == {
        "bias": (None, None, 0),
        "head": ("dense", 16, 1),
        "hidden": ("dense", 64, 1),
        "kernel": ("conv", 9, 16),
    }
    assert "bias" in table["bias"].reason
    moments = ju.second_moments(classifier, images)
    rows = present(ju.layer_inputs(classifier, images))
    assert set(present(moments)) == set(rows) == {"head", "hidden", "kernel"}
    for name, moment in present(moments).items():
        (inputs,) = np.asarray(rows[name].inputs, np.float64)
        np.testing.assert_allclose(moment.gram[0], inputs.T @ inputs, rtol=1e-4)
        assert moment.rows == len(inputs)
    tx = ju.project_to_null_space(ju.subspaces(moments, rank=5))
    updates, _ = tx.update(classifier.params, tx.init(classifier.params))
    leaked = ju.leakage(updates, ju.subspaces(moments, rank=5))
    assert max(jax.tree.leaves(leaked)) < 1e-5
    assert not updates["bias"].any()
    drift = ju.drift(moments, classifier.params, draw(1)[0])
    assert min(jax.tree.leaves(drift)) > 0.1


def test_moments_do_not_depend_on_the_devices():
    classifier, images = frozen(), samples(20).images
    mesh = jax.make_mesh((4,), ("shard",))
    alone, sharded = (
        present(ju.second_moments(classifier, images, batch_size=8, mesh=m))
        for m in (None, mesh)
    )
    for name, moment in alone.items():
        np.testing.assert_allclose(sharded[name].gram, moment.gram, rtol=1e-5)


@pytest.mark.parametrize("method", ["unsc", "covarnav"])
def test_methods_forget_and_leave_state_and_apply_alone(trained, method):
    data = samples(64)
    forget, retain = ju.split_by_class(data, [2])
    task = ju.Task(forget, retain, [2], num_classes=CLASSES)
    method = {
        "unsc": ju.UNSC(learning_rate=0.3, steps=40),
        "covarnav": ju.CovarNav(learning_rate=0.3, steps=40, inversion_steps=30),
    }[method]
    before = ju.evaluate(trained, data, [2])
    result = method(trained, task, key=jax.random.key(0))
    after = ju.evaluate(result.classifier, data, [2])
    assert before.forgotten > 90
    assert after.forgotten < before.forgotten / 2
    assert after.retained > before.retained - 20
    assert result.classifier.network == trained.network
    chex.assert_trees_all_equal(result.classifier.state, trained.state)
    np.testing.assert_array_equal(result.classifier.params["bias"],
                                  trained.params["bias"])  # fmt: skip


def test_inverted_images_are_of_their_class_and_statistics_are_seen(trained):
    """The running mean and variance are those of a normalisation layer."""
    options = {"image_shape": SHAPE, "key": jax.random.key(0), "steps": 40}
    images = ju.invert(trained, [0, 1, 2, 3], **options)
    assert trained(images).argmax(1).tolist() == [0, 1, 2, 3]
    prior = ju.ImagePrior(feature=1.0)
    assert np.isfinite(ju.invert(trained, [0], prior=prior, **options)).all()


def test_equal_functions_share_one_trace():
    traces = []

    def counted(params, state, images):
        traces.append(images.shape)
        return apply(params, state, images)

    first, second = (ju.freeze(ju.Function(counted, *draw(seed))) for seed in (0, 1))
    assert first.network == second.network
    assert hash(first.network) == hash(second.network)
    other = ju.freeze(ju.Function(lambda p, s, x: counted(p, s, x), *draw()))
    assert other.network != first.network
    images = np.ones((8, *SHAPE), np.float32)
    ju.second_moments(first, images)
    before = len(traces)
    ju.second_moments(second, images)
    assert len(traces) == before


def test_an_apply_without_a_hash_is_compared_by_identity():
    @dataclasses.dataclass
    class Apply:
        scale: float = 1.0

        def __call__(self, params, state, images):
            return self.scale * apply(params, state, images)

    one = Apply()
    first, same, other = (
        ju.freeze(ju.Function(a, *draw())) for a in (one, one, Apply())
    )
    assert first.network == same.network != other.network
    images = np.ones((2, *SHAPE), np.float32)
    compiled = jax.jit(lambda classifier, images: classifier(images))
    np.testing.assert_array_equal(compiled(first, images), compiled(other, images))


def test_thaw_gives_the_function_back():
    classifier = frozen()
    moved = classifier.replace(params=draw(1)[0])
    function = ju.thaw(moved)
    assert function.apply is apply
    chex.assert_trees_all_equal(function.params, draw(1)[0])
    chex.assert_trees_all_equal(function.state, classifier.state)
    again = ju.freeze(function, preprocess=PREPROCESS)
    assert again.network == classifier.network


def test_it_is_saved_and_loaded_with_a_function_of_its_kind(tmp_path):
    path = tmp_path / "by_hand.safetensors"
    ju.save(path, frozen())
    loaded = ju.load(path, ju.Function(apply, *draw(1)))
    chex.assert_trees_all_equal(loaded.params, frozen().params)
    chex.assert_trees_all_equal(loaded.state, frozen().state)
    assert (loaded.network, loaded.preprocess) == (frozen().network, PREPROCESS)
    with pytest.raises(ValueError, match="No model is given"):
        ju.load(path)


def test_state_may_be_left_out_and_params_may_be_one_array():
    def linear(params, state, images):
        assert state is None
        return images.reshape(images.shape[0], -1) @ params

    classifier = ju.freeze(ju.Function(linear, np.ones((64, 3), np.float32)))
    images = np.ones((2, *SHAPE), np.float32)
    assert classifier(images).shape == (2, 3)
    [record] = ju.layer_table(classifier, images)
    assert (record.kind, record.d) == ("dense", 64)
    sgd = optax.sgd(0.1)
    labels = np.array([0, 1])
    result = ju.unlearn(classifier, images, labels, sgd, steps=2, key=jax.random.key(0))
    assert jnp.abs(result.classifier.params - classifier.params).max() > 0


def test_what_freeze_does_not_take_with_a_function_is_refused():
    function = ju.Function(apply, *draw())
    with pytest.raises(TypeError, match="holds its own params and state"):
        ju.freeze(function, {"params": {}})
    with pytest.raises(TypeError, match=r"no call options, given \['train'\].*partial"):
        ju.freeze(function, train=False)
    with pytest.raises(TypeError, match="preprocess must be a Preprocess"):
        ju.freeze(function, preprocess=0.5)
    with pytest.raises(TypeError, match=r"NNX module, or a Function.*it is a function"):
        ju.freeze(apply)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"apply": None}, TypeError, "must be callable.*it is a NoneType"),
        ({"params": {}}, ValueError, "hold no array"),
        ({"params": {"w": [1.0]}}, TypeError, "params at w/0 must be .* a float"),
        (
            {"params": {"w": jnp.ones(2, int)}},
            TypeError,
            r"int32\[2\].*or in state",
        ),
        ({"params": apply}, TypeError, "at the only leaf .* a function"),
        ({"state": {"name": "net"}}, TypeError, "state at name must be an array.* str"),
    ],
)
def test_fields_of_another_kind_are_refused(fields, error, words):
    params, state = draw()
    given = {"apply": apply, "params": params, "state": state, **fields}
    with pytest.raises(error, match=words):
        ju.Function(**given)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda logits: (logits, {}), TypeError, "it returned a tuple"),
        (lambda logits: logits[0], ValueError, r"shape \[n, classes\].*\(4,\)"),
        (lambda logits: logits.argmax(1), ValueError, r"shape \[n, classes\]"),
        (lambda logits: logits.astype(int), TypeError, "floating-point.*int32"),
        (
            lambda logits: jnp.repeat(logits, 2, 0),
            ValueError,
            r"it returned \([642], 4\)",
        ),
    ],
)
@pytest.mark.parametrize("call", ["logits", "layer_table", "second_moments"])
def test_what_is_no_logits_is_refused(change, error, words, call):
    function = ju.Function(lambda *given: change(apply(*given)), *draw())
    classifier, images = ju.freeze(function), np.ones((3, *SHAPE), np.float32)
    calls = {
        "logits": classifier,
        "layer_table": functools.partial(ju.layer_table, classifier),
        "second_moments": functools.partial(ju.second_moments, classifier),
    }
    with pytest.raises(error, match=words):
        calls[call](images)


def test_a_function_that_mixes_its_images_is_refused():
    mixing = ju.Function(
        lambda p, s, x: apply(p, s, x - x.mean(0, keepdims=True)), *draw()
    )
    with pytest.raises(ValueError, match="must depend on that image alone"):
        ju.second_moments(ju.freeze(mixing), samples().images / np.float32(255))


def test_training_is_refused_in_a_sentence():
    classifier = frozen()
    words = "only infers, and training needs a train function"
    with pytest.raises(TypeError, match=words):
        training.fit(
            ju.Function(apply, *draw()),
            samples(),
            recipe=training.Recipe(epochs=1),
            key=jax.random.key(0),
            preprocess=PREPROCESS,
        )
    with pytest.raises(TypeError, match=words):
        classifier.network.init(jax.random.key(0), SHAPE)
