"""What CovarNav's inversion starts from."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.inversion import ImageAdam, augmented_images, invert

KEY, CLASSES, SHAPE = jax.random.key(2), 3, (4, 4, 1)
METHOD = ju.CovarNav(images_per_class=5, inversion_steps=3, steps=2)


class Net(nn.Module):
    norm: bool

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(True)(x) if self.norm else x
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


def classifier(norm=False, preprocess=ju.Preprocess(0.5, 0.25)):  # noqa: B008
    variables = Net(norm).init(KEY, jnp.ones((1, *SHAPE)))
    return ju.freeze(Net(norm), variables, preprocess=preprocess)


def data(n=12):
    images = np.random.default_rng(0).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    return ju.Data(images, np.arange(n) % CLASSES)


def task(forget=1):
    given, _ = ju.split_by_class(data(), [forget])
    return ju.Task(given, None, [forget], num_classes=CLASSES)


def by_hand(start):
    """The same images by `invert`, at the rate that goes with the start."""
    images, rate = None, 0.1
    if start == "forget":
        given = classifier(), task().forget.images, 10
        images = augmented_images(*given, key=jax.random.fold_in(KEY, 1))
        rate = 0.01
    labels, options = [0, 2] * 5, {"steps": 3, "optimizer": ImageAdam(rate)}
    return invert(
        classifier(), labels, image_shape=SHAPE, key=KEY, start=images, **options
    )


@pytest.mark.long
@pytest.mark.parametrize("start", ["noise", "forget"])
def test_it_inverts_from_noise_or_from_the_forget_images(start):
    method = dataclasses.replace(METHOD, start=start)
    proxies = method.proxies(classifier(), task(), key=KEY)
    np.testing.assert_array_equal(proxies.images, by_hand(start))
    assert proxies.labels.tolist() == [0, 2] * 5


@pytest.mark.long
@pytest.mark.parametrize(("norm", "start"), [(False, "forget"), (True, "noise")])
def test_by_default_batch_norm_decides(norm, start):
    named = dataclasses.replace(METHOD, start=start)
    found, expected = (
        method.proxies(classifier(norm), task(), key=KEY).images
        for method in (METHOD, named)
    )
    np.testing.assert_array_equal(found, expected)


def test_augmented_forget_images_as_they_are_are_a_floor():
    method = dataclasses.replace(METHOD, stand_in="augmented")
    proxies = method.proxies(classifier(), task(), key=KEY)
    given = classifier(), task().forget.images, 10
    expected = augmented_images(*given, key=jax.random.fold_in(KEY, 1))
    np.testing.assert_array_equal(proxies.images, expected)
    statistics = method.statistics(classifier(), task(), key=KEY)
    np.testing.assert_array_equal(statistics.proxies.images, expected)
    assert statistics.samples_read == 0


def test_without_preprocess_bounds_are_those_of_the_forget_images():
    plain = classifier(preprocess=None)
    images = task().forget.images / np.float32(50) - 2
    given = ju.Task(ju.Data(images, task().forget.labels), None, [1], num_classes=3)
    method = dataclasses.replace(METHOD, start="forget", inversion_rate=1.0)
    made = method.proxies(plain, given, key=KEY).images
    np.testing.assert_allclose([made.min(), made.max()], [images.min(), images.max()])


def test_several_requests_see_none_of_each_other_s_images():
    """They share proxies, which start from noise, or from nothing."""
    pool = ju.Task(data(), data(), (), num_classes=CLASSES)
    options = {"key": KEY, "requests": ((0,), (1,))}
    shared = METHOD.statistics(classifier(), pool, **options).proxies
    noise = dataclasses.replace(METHOD, start="noise")
    expected = noise.proxies(classifier(), pool, key=KEY)
    np.testing.assert_array_equal(shared.images, expected.images)
    for fields in ({"start": "forget"}, {"stand_in": "augmented"}):
        [(name, value)] = fields.items()
        words = f'{name} is "{value}" and there are several requests'
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(METHOD, **fields).statistics(
                classifier(), pool, **options
            )


def test_another_start_is_refused():
    method = ju.CovarNav()
    object.__setattr__(method, "start", "images")
    with pytest.raises(ValueError, match="start must be .*it is 'images'"):
        method.__post_init__()
