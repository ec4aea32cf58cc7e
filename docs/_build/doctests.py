"""Examples of docstrings as code blocks of the built pages."""

import re

import griffe

_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?!\s*$).*)*", flags=re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts fences around what a docstring shows behind `>>>`."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Change a docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match) -> str:
    return f"{match[1]}```pycon\n{match[0]}\n{match[1]}```"
