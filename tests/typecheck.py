"""The run-time type checker of the tests: beartype, for which 1 is a float too."""

import jaxtyping
from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))


def unchecked(function):
    """As it is without these checks, where the library knows better words."""

    def call(*args, **options):
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return function(*args, **options)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    return call
