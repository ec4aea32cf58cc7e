"""The whole page: one file, without a word from the network."""

from importlib.resources import files

from jaxunlearn.report.contents import Contents, MissingError
from jaxunlearn.report.elements import escaped, paragraph
from jaxunlearn.report.measures import Measures
from jaxunlearn.report.sections import SECTIONS

# Nothing may be loaded, whatever stands in the data.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="jaxunlearn">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><p class="kind">{kind}</p><h1>{title}</h1><p>{what}</p>{note}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{sections}
</main>
<script>{script}</script>
</body>
</html>
"""


def page(contents: Contents, measures: Measures) -> str:
    """The page as HTML.

    What cannot be shown is a sentence in its section that says why, and how to get it.

    Args:
      contents: what a folder holds.
      measures: what `measure` makes of it.
    """
    sections = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{escaped(section.title)}</h2>'
        f"{_built(section, contents, measures)}</section>"
        for name, section in SECTIONS.items()
    )
    links = "".join(
        f'<li><a href="#{name}">{escaped(section.title)}</a></li>'
        for name, section in SECTIONS.items()
    )
    return _TEMPLATE.format(
        policy=escaped(_POLICY),
        title=escaped(contents.title),
        kind=escaped(f"jaxunlearn {contents.kind}"),
        what=escaped(contents.what),
        note=paragraph(contents.note, "note") if contents.note else "",
        links=links,
        sections=sections,
        style=_resource("style.css"),
        script=_resource("script.js"),
    )


def _built(section, contents, measures) -> str:
    try:
        return section.build(contents, measures)
    except MissingError as error:
        return paragraph(str(error), "missing")


def _resource(name: str) -> str:
    return files("jaxunlearn.report").joinpath(name).read_text(encoding="utf-8")
