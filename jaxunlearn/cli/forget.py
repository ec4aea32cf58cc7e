"""One method at the learning rate that validation data choose."""

import jax
from jaxtyping import Array


def keys(seed: int) -> tuple[Array, Array]:
    """What the original is trained from, and what every method starts from."""
    original, method = jax.random.split(jax.random.key(seed))
    return original, method
