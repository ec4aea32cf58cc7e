"""The persistent compilation cache of the commands that compute."""

import os

from rich.console import Console

from jaxunlearn.parallel import cache_compilations

_SWITCH = "JAXUNLEARN_COMPILATION_CACHE"


def keep_programs(console: Console) -> None:
    """`cache_compilations`, unless `JAXUNLEARN_COMPILATION_CACHE=off`.

    Where the folder cannot be written to, the console says so and the command goes on.
    """
    switch = os.environ.get(_SWITCH, "on")
    if switch not in ("on", "off"):
        msg = f'{_SWITCH} must be "on" or "off"; it is {switch!r}.'
        raise ValueError(msg)
    if switch == "off":
        return
    try:
        cache_compilations()
    except OSError as error:
        console.print(str(error))
