"""Whether a call is right, or refused in a sentence of the library's own."""

import traceback
from pathlib import Path

import jaxunlearn

LIBRARY = Path(jaxunlearn.__file__).parent


def outcome(function, *arguments, **options):
    """ "right", "sentence", or the raw error with where it came from."""
    try:
        function(*arguments, **options)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = (
            isinstance(error, TypeError | ValueError | FloatingPointError)
            and Path(last.filename).is_relative_to(LIBRARY)
            and last.line.startswith("raise ")
            and 0 < len(str(error)) <= 1000
        )
        raw = f"{type(error).__name__}: {str(error)[:200]} ({last.filename})"
        return "sentence" if said else raw
    return "right"
