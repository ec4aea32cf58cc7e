"""Figures of matplotlib as inline SVG, whose colours are the page's own."""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

# What matplotlib is told, and the variable of the style sheet that it becomes.
INK, SOFT, FAINT, PAPER, ACCENT = (
    "#0a0001",
    "#0a0002",
    "#0a0003",
    "#0a0004",
    "#0a0005",
)
ORIGINAL, RETRAINED = "#0a0006", "#0a0007"
SERIES = tuple(f"#0b000{n}" for n in range(1, 7))
_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    FAINT: "line",
    PAPER: "paper",
    ACCENT: "forgotten",
    ORIGINAL: "original",
    RETRAINED: "retrained",
    **{colour: f"series-{n}" for n, colour in enumerate(SERIES, 1)},
}

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
}

# Points to an inch: a unit of the SVG is a pixel of the page.
_DPI = 72

_HREF = "{http://www.w3.org/1999/xlink}href"


class Drawing:
    """A figure on its way into the page.

    `with Drawing("name", 340, 240) as drawing` holds matplotlib's style; `axes` is its
    only panel, `tip` names what the pointer shows, and `svg` ends it.
    """

    def __init__(self, name: str, width: float, height: float):
        import matplotlib
        from matplotlib.figure import Figure

        # Names of its parts, unique in the page and the same each time.
        self._name = re.sub(r"\W+", "-", name)
        self._tips: dict[str, list[str]] = {}
        self._style = matplotlib.rc_context(
            _STYLE | {"svg.hashsalt": self._name, "svg.id": None}
        )
        self._make = lambda: Figure(
            figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained"
        )

    def __enter__(self) -> "Drawing":
        self._style.__enter__()
        self.figure = self._make()
        self.axes = self.figure.add_subplot()
        return self

    def __exit__(self, *error) -> None:
        self._style.__exit__(*error)

    def tip(self, artist: Any, texts: Sequence[str]) -> None:
        """What the pointer shows over each shape of an artist, in their order."""
        name = f"tip{len(self._tips)}"
        artist.set_gid(name)
        self._tips[name] = list(texts)

    def svg(self, label: str) -> str:
        """The figure as an element of HTML; `label` is what it says without eyes."""
        file = io.StringIO()
        # None leaves the entry out: the same figure is the same text.
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        root = ElementTree.fromstring(file.getvalue())
        _plain(root)
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag in ("metadata", "style"):
                    parent.remove(child)
        for group in list(root.iter("g")):
            _add_tips(group, self._tips.get(group.get("id", ""), []))
        self._rename(root)
        size = root.get("viewBox", "0 0 1 1").split()[2:]
        root.attrib.clear()
        root.set("viewBox", f"0 0 {' '.join(size)}")
        root.set("width", size[0])
        root.set("height", size[1])
        root.set("role", "img")
        root.set("aria-label", label)
        text = ElementTree.tostring(root, encoding="unicode")
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, f"var(--{variable})")
        return re.sub(r">\s+<", "><", _rounded(text))

    def _rename(self, root) -> None:
        """Names that are referred to, made unique; all others go."""
        texts = [value for element in root.iter() for value in element.attrib.values()]
        used = {name for text in texts for name in re.findall(r"#([\w-]+)", text)}
        for element in root.iter():
            name = element.attrib.pop("id", None)
            if name in used:
                element.set("id", f"{self._name}-{name}")
            for attribute, value in list(element.attrib.items()):
                if attribute == "href":
                    if value.startswith("#"):
                        element.set("href", f"#{self._name}-{value[1:]}")
                elif "url(#" in value:
                    new = value.replace("url(#", f"url(#{self._name}-")
                    element.set(attribute, new)


def _plain(root) -> None:
    """Without namespaces, of which SVG within HTML has no need."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if _HREF in element.attrib:
            element.set("href", element.attrib.pop(_HREF))


def _add_tips(group, texts) -> None:
    if not texts:
        return
    shapes = [e for e in _drawn(group) if e.tag in ("use", "path", "image")]
    for shape, text in zip(shapes[-len(texts) :], texts, strict=True):
        title = ElementTree.SubElement(shape, "title")
        title.text = text


def _drawn(element):
    for child in element:
        if child.tag != "defs":
            yield child
            yield from _drawn(child)


def _rounded(text: str) -> str:
    """Coordinates to a hundredth of a pixel: half the size, and nobody sees it."""

    def short(attribute):
        return re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", attribute[0])

    return re.sub(r' (?:d|x|y|transform|points)="[^"]*"', short, text)
