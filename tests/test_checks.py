"""Arguments that are refused in a sentence before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.checks import check_eager, check_type
from jaxunlearn.tasks import Data


def test_another_type_is_named_and_none_only_where_it_may_be():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(TypeError, match="train must be a Data; it is a tuple. Data"):
        check_type("train", (images, [0, 1]), Data, "Data(images, labels) makes one.")
    with pytest.raises(TypeError, match="train must be a Data or None; it is a str"):
        check_type("train", "cats", Data, optional=True)
    with pytest.raises(TypeError, match="train must be a Data; it is a NoneType"):
        check_type("train", None, Data)
    check_type("train", None, Data, optional=True)
    check_type("train", Data(images, [0, 1]), Data)


def test_inside_a_transformation_nothing_can_be_looked_at():
    check_eager("fit", jnp.zeros(2))
    for transform in (jax.jit, jax.grad, jax.vmap):
        argument = jnp.zeros(2) if transform is jax.vmap else 0.0
        with pytest.raises(TypeError, match=r"fit .*inside jax\.jit"):
            transform(lambda x: check_eager("fit", x))(argument)
    with pytest.raises(TypeError, match="fit runs many programs"):
        jax.jit(lambda: check_eager("fit"))()
