"""What images a classifier takes: pixels in [0, 1] where it has a `Preprocess`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju

PIXELS = np.random.default_rng(0).random((4, 4, 4, 3), np.float32)
LABELS = np.array([0, 1, 1, 0])


def network(params, state, images):
    return images.reshape(len(images), -1)[:, :48] @ params


def frozen(preprocess=None):
    kernel = jax.random.normal(jax.random.key(0), (48, 2))
    return ju.freeze(ju.Function(network, kernel), preprocess=preprocess)


CLASSIFIER = frozen(ju.Preprocess(0.5, 0.25))

# Whatever takes images through the `Preprocess`.
USES = {
    "call": lambda c, images: c(images),
    "evaluate": lambda c, images: ju.evaluate(c, ju.Data(images, LABELS), [1]),
    "second_moments": ju.second_moments,
    "stream": lambda c, images: ju.second_moments(c, [images]),
    "second batch": lambda c, images: ju.second_moments(
        c, [PIXELS.astype(images.dtype), images]
    ),
    "pairs": lambda c, images: ju.class_moments(
        c, [(images, LABELS)], None, num_classes=2
    ),
    "class_moments": lambda c, images: ju.class_moments(
        c, images, LABELS, num_classes=2
    ),
    "row_subspaces": lambda c, images: ju.row_subspaces(c, images, rank=1),
    "layer_inputs": ju.layer_inputs,
}


def test_images_on_a_device_may_be_closed_over_under_jit():
    images, wrong = jnp.asarray(PIXELS), jnp.asarray(PIXELS * 255)

    def logits(images):
        return jax.jit(lambda p: CLASSIFIER.replace(params=p)(images))

    got = logits(images)(CLASSIFIER.params)
    np.testing.assert_allclose(got, CLASSIFIER(images), rtol=1e-5)
    with pytest.raises(ValueError, match=r"these images range from"):
        logits(wrong)(CLASSIFIER.params)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("images", "seen"),
    [
        (PIXELS * 255, r"from 0\.\d+ to 25\d"),
        ((PIXELS - 0.5) / 0.25, r"from -1\.9\d+ to 1\.9\d+"),
        # One such image among others is enough.
        (PIXELS * np.array([1, 1, 1, 9], np.float32)[:, None, None, None], "to 8"),
    ],
)
def test_floats_clearly_outside_the_unit_interval_are_refused(use, images, seen):
    with pytest.raises(ValueError, match=rf"in \[0, 1\]; .* {seen}.*uint8.*std"):
        USES[use](CLASSIFIER, images)


@pytest.mark.parametrize(
    "use",
    [*(pytest.param(u, marks=pytest.mark.long) for u in [*USES][:-1]), [*USES][-1]],
)
@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        (PIXELS * 255).astype(np.uint8),
        PIXELS + np.float32(1e-3),
        PIXELS.astype(jnp.bfloat16) * 1.004,
        PIXELS.astype(np.float16),
        jax.image.resize(np.round(PIXELS), (4, 8, 8, 3), "cubic")[:, ::2, ::2],
    ],
    ids=["pixels", "bytes", "rounding", "bfloat16", "half", "overshoot"],
)
def test_pixels_that_rounding_or_resizing_moved_are_taken(use, images):
    USES[use](CLASSIFIER, images)


@pytest.mark.parametrize("use", USES)
def test_without_a_preprocess_floats_may_have_any_range(use):
    USES[use](frozen(), PIXELS * 255)


def test_of_traced_images_no_range_is_known():
    assert jax.jit(CLASSIFIER)(PIXELS * 255).shape == (4, 2)
    assert jax.jit(ju.second_moments)(CLASSIFIER, PIXELS * 255).rows == 4
