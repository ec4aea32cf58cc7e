"""What is said of a word on the command line that is no flag."""

import difflib
from collections.abc import Sequence

from jaxunlearn.checks import short

# What other programs call flags.
_ELSEWHERE = {"lr": "learning-rates", "data": "dataset", "output": "out"}
_ELSEWHERE |= {"arch": "model", "network": "model", "classes": "forget"}
_ELSEWHERE |= {"class": "forget", "forget": "classes"}
_ELSEWHERE |= {"ckpt": "checkpoint", "weights": "checkpoint", "force": "overwrite"}


def unknown_flag(name: str, words: Sequence[str], known: Sequence[str]) -> str:
    """What is said of words that are no flags, with the nearest flag."""
    more = f"jaxunlearn {name} --help-all lists all flags."
    if not words[0].startswith("-"):
        return f"jaxunlearn {name} takes no {short(words[0])}: {more}"
    word = words[0].partition("=")[0][:80]
    plain = word.strip("-")
    plain = _ELSEWHERE.get(plain, plain)
    by_end: dict[str, list[str]] = {}
    for flag in known:
        by_end.setdefault(flag.rpartition(".")[2].strip("-"), []).append(flag)
    ends = difflib.get_close_matches(plain, by_end, 2, 0.8)
    near = [flag for end in ends for flag in by_end[end]][:3]
    near = near or difflib.get_close_matches(f"--{plain}", known, 1)
    nearest = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"There is no flag {word}{nearest} {more}"


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a sentence that says that a word is none of those known."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else "."
