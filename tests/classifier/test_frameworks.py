"""Networks of other frameworks, frozen as `docs/frameworks.md` shows."""

import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jaxunlearn as ju

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
IMAGES = np.random.default_rng(0).uniform(size=(20, 8, 8, 1)).astype(np.float32)
LABELS = np.arange(20) % 10


def shown(heading, **known):
    """The names that the page's code under this heading defines."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    namespace = {"__name__": "__main__", **known}
    exec(compile(code, f"{PAGE.name}: {heading}", "exec"), namespace)  # noqa: S102
    return namespace


def equinox_net():
    pytest.importorskip("equinox")
    names = shown("Equinox")
    logits = jax.vmap(names["net"])(IMAGES.transpose(0, 3, 1, 2))
    kinds = {"conv/weight": ("conv", 9), "conv/bias": None}
    kinds |= {"head/weight": ("dense", 512), "head/bias": None}
    return names, logits, kinds


def keras_net(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("keras")
    names = shown("Keras 3")
    logits = names["net"](IMAGES, training=False)
    # Kernel and bias of the convolution, scale and shift, kernel and bias of the head.
    kinds = {"0": ("conv", 9), "1": None, "2": None, "3": None}
    return names, logits, {**kinds, "4": ("dense", 512), "5": None}


def haiku_net():
    pytest.importorskip("haiku")
    names = shown("Haiku")
    apply = names["net"].apply
    logits, _ = apply(names["params"], names["state"], IMAGES, is_training=False)
    kinds = {"batch_norm/offset": None, "batch_norm/scale": None}
    kinds |= {"conv2_d/b": None, "conv2_d/w": ("conv", 9)}
    return names, logits, {**kinds, "linear/b": None, "linear/w": ("dense", 8)}


@pytest.fixture(params=["equinox", "haiku", "keras"])
def example(request, monkeypatch):
    """Names of the snippet, the framework's own logits, kind and fan-in by leaf."""
    if request.param == "equinox":
        yield equinox_net()
        return
    if request.param == "haiku":
        yield haiku_net()
        return
    with jax.numpy_rank_promotion("allow"):  # Keras adds [k] to [n, k].
        yield keras_net(monkeypatch)


def test_it_is_a_classifier_like_any_other(example):
    names, logits, kinds = example
    classifier = names["classifier"]
    np.testing.assert_allclose(classifier(IMAGES), logits, atol=1e-5)
    table = ju.layer_table(classifier, IMAGES)
    assert {r.path: r.kind and (r.kind, r.d) for r in table} == kinds
    data = ju.Data(IMAGES, LABELS)
    assert ju.evaluate(classifier, data, [1]).per_class.shape == (10,)
    subspaces = ju.subspaces(ju.second_moments(classifier, IMAGES), rank=3)
    tx = optax.chain(optax.adam(1e-3), ju.project_to_null_space(subspaces))
    key = jax.random.key(0)
    result = ju.unlearn(classifier, IMAGES, LABELS[::-1], tx, steps=3, key=key)
    moved = [
        not np.array_equal(one, other)
        for one, other in zip(
            jax.tree.leaves(classifier.params),
            jax.tree.leaves(result.classifier.params),
            strict=True,
        )
    ]
    assert moved == [kind is not None for kind in kinds.values()]
    images = ju.invert(
        classifier, [0, 1], image_shape=(8, 8, 1), key=jax.random.key(1), steps=2
    )
    assert np.isfinite(images).all()


def test_a_second_network_of_the_page_is_a_network_of_its_own(example):
    names, *_ = example
    assert ju.thaw(names["classifier"]).apply is names["apply"]
