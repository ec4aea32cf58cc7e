"""Whether two computations are the same one: digests of arrays, and what differs."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxunlearn.capture.layout import path_name


def digest(*parts: Any) -> str:
    """SHA-256 of bytes and contiguous arrays, told apart by a zero byte.

    >>> digest(b"ab", b"c") == digest(b"a", b"bc")
    False
    """
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()


def tree_digest(tree: PyTree) -> str:
    """Digest of all arrays in a tree, with their paths, types and shapes.

    >>> tree_digest({"a": np.zeros(2)}) == tree_digest({"b": np.zeros(2)})
    False
    """
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        kind = f"{path_name(path)} {array.dtype}{array.shape}"
        found.update(digest(kind.encode(), array.tobytes()).encode())
    return found.hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Names of what differs, with both values where they are short.

    >>> differences({"steps": 3, "rate": 1}, {"steps": 4, "rate": 1})
    ['steps (3 there, 4 here)']
    """
    missing = object()
    found = []
    for name in {**here, **there}:
        values = there.get(name, missing), here.get(name, missing)
        if values[0] == values[1]:
            continue
        short = all(v is not missing and len(str(v)) < 40 for v in values)
        found.append(f"{name} ({values[0]} there, {values[1]} here)" if short else name)
    return found
