"""The run-time type checker of the tests: beartype, for which 1 is a float too."""

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
