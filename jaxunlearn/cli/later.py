"""Settings that are younger than files which people have."""

from collections.abc import Mapping
from typing import Any

# What each means where it is not said, whatever it is a setting of. A cache or a folder
# from before a setting was there stays good, as long as it is not set.
_UNSAID = {"imbalance": None, "normalise": False}


def told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, at any depth, without younger ones that change nothing.

    >>> told({"seed": 0, "imbalance": None, "unsc": {"rank": 3, "normalise": True}})
    {'seed': 0, 'unsc': {'rank': 3, 'normalise': True}}
    """
    return {
        name: told(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in _UNSAID or value != _UNSAID[name]
    }
