"""Freezing and thawing linen and NNX modules, and what happens between the two."""

import collections
import functools

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxunlearn as ju

IMAGES = np.random.default_rng(0).normal(size=(6, 2, 2, 1)).astype(np.float32)


class Linen(nn.Module):
    """A partitioned kernel, batch statistics and dropout."""

    width: int = 5
    rate: float = 0.5

    @nn.compact
    def __call__(self, images, train=False):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        x = nn.Dense(self.width, kernel_init=init)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(3)(x)


class NNX(nnx.Module):
    """The same with NNX, more than ten layers deep, so that their order matters."""

    def __init__(self, rngs, rate=0.5):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(12)])
        self.norm = nnx.BatchNorm(4, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, images):
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.dropout(self.norm(x)))


class WithList(nn.Module):
    """A field that has no hash."""

    table: object

    @nn.compact
    def __call__(self, images):
        scale = sum(self.table["scales"])
        return scale * nn.Dense(3)(images.reshape(len(images), -1))


@functools.cache
def linen_variables(model=Linen(), seed=0):  # noqa: B008 (modules are values)
    variables = jax.jit(model.init)(jax.random.key(seed), IMAGES)
    # Statistics that are not 0 and 1, or leaving them out would go unnoticed.
    stats = jax.tree.map(lambda s: s + 0.25, variables["batch_stats"])
    return {"params": variables["params"], "batch_stats": stats}


@functools.cache
def frozen(kind, rate=0.5):
    if kind == "nnx":
        return ju.freeze(NNX(nnx.Rngs(0), rate))
    return ju.freeze(Linen(rate=rate), linen_variables())


def reversed_order(tree):
    if not isinstance(tree, dict):
        return tree
    items = [(k, reversed_order(v)) for k, v in reversed(sorted(tree.items()))]
    return collections.OrderedDict(items)


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert jnp.asarray(x).dtype == jnp.asarray(y).dtype
        if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "wrap",
    [dict, flax.core.freeze, reversed_order, nn.meta.unbox],
    ids=["partitioned", "frozen dict", "ordered dict", "plain"],
)
def test_linen_variables_come_back_bit_for_bit_in_their_own_format(wrap):
    variables = wrap(linen_variables())
    back = ju.thaw(ju.freeze(Linen(), variables))
    assert type(back) is type(variables)
    assert_identical(back, variables)


def test_params_and_state_are_plain_arrays_whatever_the_boxes():
    classifier = ju.freeze(Linen(), flax.core.freeze(linen_variables()))
    assert type(classifier.params) is dict
    assert set(classifier.state) == {"batch_stats"}
    assert isinstance(classifier.params["Dense_0"]["kernel"], jax.Array)


def test_changed_linen_params_are_thawed_into_their_boxes():
    variables = linen_variables()
    classifier = ju.freeze(Linen(), variables)
    doubled = jax.tree.map(lambda p: 2 * p, classifier.params)
    box = ju.thaw(classifier.replace(params=doubled))["params"]["Dense_0"]["kernel"]
    assert box.names == (None, "model")
    original = variables["params"]["Dense_0"]["kernel"].value
    np.testing.assert_array_equal(box.value, 2 * original)


def test_linen_logits_are_those_of_the_module_in_evaluation():
    variables = linen_variables()
    expected = Linen().apply(nn.meta.unbox(variables), IMAGES, train=False)
    np.testing.assert_array_equal(ju.freeze(Linen(), variables)(IMAGES), expected)


def test_nnx_logits_are_those_of_the_module_in_evaluation():
    model = NNX(nnx.Rngs(0))
    classifier = ju.freeze(model)  # a new module is in training mode
    model.eval()
    np.testing.assert_array_equal(classifier(IMAGES), model(jnp.asarray(IMAGES)))


@pytest.mark.parametrize("training", [True, False])
def test_the_nnx_module_is_never_modified(training):
    model = NNX(nnx.Rngs(0))
    model.train() if training else model.eval()
    graph, before = nnx.split(model)
    before = jax.tree.map(jnp.copy, before)
    classifier = ju.freeze(model)
    classifier(IMAGES)
    classifier.network.apply_train(
        classifier.params, classifier.state, IMAGES, jax.random.key(0)
    )
    thawed = ju.thaw(classifier)
    assert thawed.dropout.deterministic is not training
    assert thawed.norm.use_running_average is not training
    thawed.eval() if training else thawed.train()
    thawed.head.kernel.set_value(jnp.zeros((4, 3)))
    after_graph, after = nnx.split(model)
    assert after_graph == graph
    assert model.dropout.deterministic is not training
    assert_identical(after, before)


def test_an_nnx_module_comes_back_bit_for_bit_as_a_new_one_of_its_class():
    model = NNX(nnx.Rngs(0))
    thawed = ju.thaw(ju.freeze(model))
    assert type(thawed) is NNX
    assert thawed is not model
    (graph, state), (thawed_graph, thawed_state) = nnx.split(model), nnx.split(thawed)
    assert graph == thawed_graph
    assert_identical(thawed_state, state)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_two_freezes_of_equal_modules_share_one_trace(kind):
    traces = []

    @jax.jit
    def run(classifier, images):
        traces.append(kind)
        return classifier(images)

    if kind == "linen":
        first, second = (ju.freeze(Linen(), linen_variables(seed=i)) for i in (0, 1))
    else:
        first, second = (ju.freeze(NNX(nnx.Rngs(i))) for i in (0, 1))
    assert first.network == second.network
    assert hash(first.network) == hash(second.network)
    assert jnp.abs(run(first, IMAGES) - run(second, IMAGES)).max() > 1e-3
    assert len(traces) == 1


def test_modules_of_other_fields_are_other_networks():
    wide = Linen(width=6)
    first = ju.freeze(Linen(), linen_variables())
    assert first.network != ju.freeze(wide, linen_variables(wide)).network


def test_a_module_with_a_field_without_hash_is_equal_to_itself_alone():
    model, twin = (WithList({"scales": np.array([1.0, 2.0])}) for _ in range(2))
    variables = model.init(jax.random.key(0), IMAGES)
    classifier = ju.freeze(model, variables)
    assert classifier.network == ju.freeze(model, variables).network
    assert classifier.network != ju.freeze(twin, variables).network
    logits = jax.jit(lambda c: c(IMAGES))(classifier)
    np.testing.assert_allclose(logits, model.apply(variables, IMAGES), rtol=1e-5)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_classifier_passes_through_jit_and_grad(kind):
    classifier = frozen(kind)

    def loss(params):
        return (classifier.replace(params=params)(IMAGES) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(classifier.params)
    assert jax.tree.structure(gradient) == jax.tree.structure(classifier.params)
    # The head's bias adds to every logit of its class: d loss / d b = 2 sum logits.
    head = gradient["head" if kind == "nnx" else "Dense_1"]["bias"]
    np.testing.assert_allclose(head, 2 * classifier(IMAGES).sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_an_ensemble_of_classifiers_is_a_vmapped_one(kind):
    classifier = frozen(kind)
    other = classifier.replace(
        params=jax.tree.map(lambda p: p + 0.1, classifier.params)
    )
    stacked = jax.tree.map(
        lambda *p: jnp.stack(p), *(c.params for c in (classifier, other))
    )
    run = jax.vmap(lambda params: classifier.replace(params=params)(IMAGES))
    expected = np.stack([classifier(IMAGES), other(IMAGES)])
    np.testing.assert_allclose(run(stacked), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_classifier_runs_on_two_devices_by_pmap(kind):
    classifier = frozen(kind)
    devices = jax.devices()[:2]
    run = jax.pmap(lambda c, x: c(x), in_axes=(None, 0), devices=devices)
    logits = run(classifier, IMAGES.reshape(2, 3, 2, 2, 1)).reshape(6, 3)
    np.testing.assert_allclose(logits, classifier(IMAGES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_training_mode_moves_the_batch_statistics_by_their_momentum(kind):
    classifier = frozen(kind)
    rows = IMAGES.reshape(6, 4)
    if kind == "linen":
        layers = [classifier.params["Dense_0"]]
        old = classifier.state["batch_stats"]["BatchNorm_0"]
    else:
        layers = [classifier.params["layers"][i] for i in range(12)]
        old = classifier.state["norm"]
    for layer in layers:
        rows = rows @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    before = jax.tree.map(jnp.copy, classifier.state)
    _, state = classifier.network.apply_train(
        classifier.params, classifier.state, IMAGES, jax.random.key(0)
    )
    new = state["batch_stats"]["BatchNorm_0"] if kind == "linen" else state["norm"]
    mean = 0.8 * old["mean"] + 0.2 * rows.mean(axis=0)
    var = 0.8 * old["var"] + 0.2 * rows.var(axis=0)
    np.testing.assert_allclose(new["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new["var"], var, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(classifier.state)
    assert_identical(classifier.state, before)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_dropout_follows_the_key_in_training_and_is_off_otherwise(kind):
    dropping, keeping = frozen(kind, rate=0.5), frozen(kind, rate=0.0)

    def train(classifier, seed):
        network = classifier.network
        key = jax.random.key(seed)
        return network.apply_train(classifier.params, classifier.state, IMAGES, key)[0]

    np.testing.assert_array_equal(train(dropping, 0), train(dropping, 0))
    assert jnp.abs(train(dropping, 0) - train(dropping, 1)).max() > 0.01
    np.testing.assert_array_equal(train(keeping, 0), train(keeping, 1))
    np.testing.assert_array_equal(dropping(IMAGES), keeping(IMAGES))


def test_a_linen_network_draws_fresh_parameters_from_a_key():
    network = frozen("linen").network
    params, state = network.init(jax.random.key(0), (2, 2, 1))
    other, _ = network.init(jax.random.key(1), (2, 2, 1))
    classifier = frozen("linen")
    assert jax.tree.structure((params, state)) == jax.tree.structure(
        (classifier.params, classifier.state)
    )
    assert jnp.abs(params["Dense_1"]["kernel"] - other["Dense_1"]["kernel"]).max() > 0


def test_an_nnx_network_does_not_draw_parameters():
    with pytest.raises(TypeError, match="own constructor"):
        frozen("nnx").network.init(jax.random.key(0), (2, 2, 1))


def flagged(images, flag):
    return jnp.full((len(images), 2), float(flag))


@pytest.mark.parametrize(
    ("call", "evaluation"),
    [
        (lambda self, images, train: flagged(images, train), 0),
        (lambda self, images, training: flagged(images, training), 0),
        (lambda self, images, is_training: flagged(images, is_training), 0),
        (lambda self, images, deterministic: flagged(images, deterministic), 1),
        (
            lambda self, images, use_running_average: flagged(
                images, use_running_average
            ),
            1,
        ),
    ],
    ids=lambda value: value.__code__.co_varnames[2] if callable(value) else "",
)
def test_flags_of_the_call_are_set_for_evaluation_and_for_training(call, evaluation):
    module = type("Flagged", (nn.Module,), {"__call__": nn.compact(call)})()
    classifier = ju.freeze(module, {"params": {}})
    assert (classifier(IMAGES) == evaluation).all()
    logits, _ = classifier.network.apply_train({}, {}, IMAGES, jax.random.key(0))
    assert (logits == 1 - evaluation).all()


def test_call_options_are_passed_on():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, images, scale=1.0, deterministic=True):
            assert deterministic
            return scale * nn.Dense(3)(images.reshape(len(images), -1))

    variables = Scaled().init(jax.random.key(0), IMAGES)
    plain, scaled = (
        ju.freeze(Scaled(), variables),
        ju.freeze(Scaled(), variables, scale=3.0),
    )
    np.testing.assert_allclose(scaled(IMAGES), 3 * plain(IMAGES), rtol=1e-6)
    assert plain.network != scaled.network


def test_a_call_option_that_the_module_does_not_take_is_refused():
    with pytest.raises(TypeError, match=r"no argument 'training'.*'images', 'train'"):
        ju.freeze(Linen(), linen_variables(), training=True)


def test_preprocess_divides_bytes_by_255_and_takes_floats_as_they_are():
    preprocess = ju.Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    expected = (pixels / 255.0 - preprocess.mean) / preprocess.std
    np.testing.assert_allclose(preprocess(pixels), expected, rtol=1e-5, atol=1e-6)
    floats = (pixels / 255.0).astype(np.float32)
    np.testing.assert_allclose(preprocess(floats), expected, rtol=1e-5, atol=1e-6)


def test_a_classifier_agrees_on_bytes_and_on_floats_in_the_unit_interval():
    preprocess = ju.Preprocess(mean=0.3, std=0.2)
    model = Linen()
    classifier = ju.freeze(model, linen_variables(), preprocess=preprocess)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 1), dtype=np.uint8)
    expected = model.apply(
        nn.meta.unbox(linen_variables()), (pixels / np.float32(255) - 0.3) / 0.2
    )
    np.testing.assert_allclose(classifier(pixels), expected, rtol=1e-4, atol=1e-5)
    floats = pixels / np.float32(255)
    np.testing.assert_allclose(classifier(floats), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"mean": 0.5, "std": 0.0}, {"mean": 0.5, "std": -1}]
)
def test_preprocess_wants_a_positive_std(options):
    with pytest.raises(ValueError, match="std must be positive"):
        ju.Preprocess(**options)


@pytest.mark.parametrize("mean", [np.nan, [[0.5]]])
def test_preprocess_wants_one_finite_number_a_channel(mean):
    with pytest.raises(ValueError, match="Preprocess.mean must be finite"):
        ju.Preprocess(mean=mean, std=1.0)


@pytest.mark.parametrize(
    ("images", "error", "sentence"),
    [
        (np.zeros((3, 2, 2, 1), np.uint8), TypeError, "no Preprocess"),
        (np.zeros((3, 2, 2, 1), np.int32), TypeError, "they are int32"),
        (np.zeros((3, 2, 2, 1), np.complex64), TypeError, "they are complex64"),
        (np.zeros((2, 2, 1), np.float32), ValueError, "leading axis"),
    ],
)
def test_images_of_the_wrong_type_or_rank_are_refused(images, error, sentence):
    with pytest.raises(error, match=sentence):
        frozen("linen")(images)


def test_preprocess_and_images_must_agree_on_the_channels():
    preprocess = ju.Preprocess(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    classifier = ju.freeze(Linen(), linen_variables(), preprocess=preprocess)
    with pytest.raises(ValueError, match="3 channels and the images have 1"):
        classifier(IMAGES)


def test_a_network_without_one_row_of_logits_for_each_image_is_refused():
    class Pooled(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(3)(images.reshape(1, -1))

    variables = Pooled().init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=r"for 6 images it returned \(1, 3\)"):
        ju.freeze(Pooled(), variables)(IMAGES)


def test_a_network_that_returns_a_tuple_is_refused():
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = images.reshape(len(images), -1)
            return nn.Dense(3)(x), x

    variables = Pair().init(jax.random.key(0), IMAGES)
    with pytest.raises(TypeError, match="must return logits .* it returned a tuple"):
        ju.freeze(Pair(), variables)(IMAGES)


def test_freeze_says_what_it_wants():
    with pytest.raises(TypeError, match="without a second argument"):
        ju.freeze(NNX(nnx.Rngs(0)), {"params": {}})
    with pytest.raises(TypeError, match="needs its variables"):
        ju.freeze(Linen())
    with pytest.raises(ValueError, match=r"they hold \['batch_stats'\]"):
        ju.freeze(Linen(), {"batch_stats": {}})
