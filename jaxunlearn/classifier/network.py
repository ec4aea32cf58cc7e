"""What the library asks of a network, whichever framework it comes from."""

from collections.abc import Hashable
from typing import Any

from flax.errors import FlaxError
from jaxtyping import Array, PyTree

# What a network raises for images that it cannot take: Flax, JAX, its own checks.
REFUSALS = (FlaxError, TypeError, ValueError, LookupError, AttributeError)


class Network:
    """The static half of a classifier: how parameters and images become logits.

    Hashable; two networks made from equal modules are equal, so that functions compiled
    for one serve the other. Images are already preprocessed here.
    """

    def init(self, key: Array, image_shape: tuple[int, ...]) -> tuple[PyTree, PyTree]:
        """Fresh `(params, state)` for images of shape `image_shape` (h, w, c)."""
        raise NotImplementedError

    def apply(self, params: PyTree, state: PyTree, images: Array) -> Array:
        """Logits `[n, k]` in inference mode, deterministic."""
        raise NotImplementedError

    def apply_train(
        self, params: PyTree, state: PyTree, images: Array, key: Array | None
    ) -> tuple[Array, PyTree]:
        """Logits and the new state, by batch statistics; dropout if there is a key."""
        raise NotImplementedError

    def thaw(self, params: PyTree, state: PyTree) -> Any:
        """The user's own format again."""
        raise NotImplementedError


def main_output(outputs: Any) -> Any:
    """The logits among what a network returns in training: the first of several."""
    return outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs


class Static:
    """A value compared by its own equality, or by identity if it has no hash.

    >>> Static(len) == Static(len), Static([1]) == Static([1])
    (True, False)
    """

    def __init__(self, value: Any):
        self.value = value
        try:
            hash(value)
            self._key: Hashable = value
        except TypeError:
            self._key = id(value)

    def __eq__(self, other):
        return (
            type(other) is Static
            and type(self.value) is type(other.value)
            and self._key == other._key
        )

    def __hash__(self):
        return hash((type(self.value), self._key))

    def __repr__(self):
        return f"Static({self.value!r})"
