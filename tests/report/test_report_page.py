"""The page: whole in itself, escaped, and without empty places."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import reported

from jaxunlearn.report.contents import (
    Cell,
    Contents,
    MissingError,
    PageTable,
    ShownModel,
)
from jaxunlearn.report.drawing import Drawing
from jaxunlearn.report.elements import number, table
from jaxunlearn.report.limits import Limits
from jaxunlearn.report.looks import looks
from jaxunlearn.report.maps import Maps
from jaxunlearn.report.measures import Measures, measure
from jaxunlearn.report.outputs import evaluations
from jaxunlearn.report.page import page
from jaxunlearn.report.sections import SECTIONS
from jaxunlearn.report.spectra import Statistics

LIMITS = Limits(points=40, relearn_steps=12, map="pca")
ADDRESSES = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")
VOID = {"meta", "link", "img", "br", "use", "path"}


class Tags(HTMLParser):
    """Every element with its attributes, and the text under each section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.figures = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "figure":
            self.figures.append([])
        for figure in self.figures[-1:]:
            figure.append(tag)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def measures():
    return measure(reported.contents(), LIMITS)


@pytest.fixture(scope="module")
def whole(measures):
    return page(reported.contents(), measures)


def section(text, name):
    return text.partition(f'<section id="{name}"')[2].partition("</section>")[0]


def test_every_section_is_there_and_none_lacks_anything(whole):
    for name, kind in SECTIONS.items():
        content = section(whole, name)
        assert kind.title in content
        assert len(content) > 300, name
        assert 'class="missing"' not in content, name


def test_the_verdict_comes_first(whole):
    assert next(iter(SECTIONS)) == "verdict"
    assert "output-level only" in section(whole, "verdict")
    assert "Outside the noise: probe +20." in section(whole, "verdict")


def test_the_page_asks_for_nothing_else(whole):
    assert "http://" not in whole
    assert "https://" not in whole
    assert "@import" not in whole
    tags = Tags(whole).tags
    addresses = [a[name] for _, a in tags for name in ADDRESSES if name in a]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert all(name.startswith("#") for name in re.findall(r"url\(([^)]+)\)", whole))
    policy = [a for a in Tags(whole).of("meta") if "http-equiv" in a]
    assert "default-src 'none'" in policy[0]["content"]


def test_names_of_classes_are_text_and_never_markup(whole):
    tags = Tags(whole)
    assert len(tags.of("script")) == 1
    assert not any(a for _, a in tags.tags if any(n.startswith("on") for n in a))
    assert not tags.of("b") or "<b>here</b>" not in whole
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in whole
    assert "<script>alert" not in whole


def test_every_figure_shows_something(whole):
    tags = Tags(whole)
    assert len(tags.figures) > 10
    for figure in tags.figures:
        shapes = [t for t in figure if t in ("use", "path", "img", "table")]
        assert len(shapes) > (2 if "svg" in figure else 0)
    for drawn in tags.of("svg"):
        assert drawn["role"] == "img"
        assert drawn["aria-label"]


def test_names_in_the_page_are_unique_and_lead_somewhere(whole):
    tags = Tags(whole).tags
    names = [a["id"] for _, a in tags if "id" in a]
    assert len(names) == len(set(names))
    wanted = {a["href"][1:] for _, a in tags if a.get("href", "").startswith("#")}
    wanted |= set(re.findall(r"url\(#([\w-]+)\)", whole))
    assert wanted <= set(names)


def test_the_same_contents_are_the_same_page(measures, whole):
    assert page(reported.contents(), measures) == whole


def test_a_page_is_small(whole):
    assert len(whole.encode()) < 600_000


def test_headings_of_tables_are_buttons_that_say_how_they_sort(whole):
    tags = Tags(whole)
    heads = [a for a in tags.of("th") if a.get("scope") == "col"]
    assert heads
    assert all(a["aria-sort"] == "none" for a in heads)
    assert len(tags.of("button")) == len(heads)
    assert all(a["type"] == "button" for a in tags.of("button"))
    regions = [a for a in tags.of("div") if a.get("class") == "scroll"]
    assert len(regions) == len(tags.of("table"))
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)


def test_a_cell_sorts_by_its_value_and_shows_its_note():
    cells = [Cell("a"), number(0.5, ".1f", ">"), number(None)]
    cells.append(Cell("9.00", 9.0, "= +1 ± 2", True))
    text = table(PageTable("t", [(h, "") for h in "abcd"], [cells]))
    assert '<th scope="row">a</th>' in text
    assert '<td class="number" data-value="0.5">&gt;0.5</td>' in text
    assert "<td></td>" in text
    assert 'class="number within" data-value="9.0">9.00<small>= +1 ± 2</small>' in text


def test_points_of_a_figure_say_their_numbers():
    with Drawing("a figure", 200, 100) as drawing:
        shapes = drawing.axes.plot([1, 2], [3, 4], linestyle="", marker="o")
        drawing.tip(shapes[0], ["one <1>", "two"])
        text = drawing.svg("what it is")
    assert text.startswith("<svg ")
    assert 'aria-label="what it is"' in text
    titles = re.findall(r"<use[^>]*><title>([^<]*)</title></use>", text)
    assert titles == ["one &lt;1&gt;", "two"]
    assert "var(--ink)" in text
    assert not re.search(r"#0[ab]000\d", text)  # every colour is the page's own
    assert "<style" not in text
    assert "metadata" not in text


def test_what_a_folder_lacks_is_a_sentence():
    nothing = Contents(
        kind="run", title="t", what="w", absent="No classifiers: do something."
    )
    text = page(nothing, measure(nothing))
    for name in SECTIONS:
        missing = 'class="missing"' in section(text, name)
        assert missing == (name != "making"), name
    assert "No classifiers: do something." in section(text, "features")
    assert "covarnav" in section(text, "proxies")
    assert "<code>jaxunlearn run</code>" in section(text, "verdict")


@pytest.mark.long
def test_a_page_of_many_classes_and_models_stays_small():
    k, n, names = 100, 416, ["original", *(f"m{i}" for i in range(9)), "r", "r2"]
    rng = np.random.default_rng(0)
    models, maps = [], Maps({}, np.arange(n) < 100, rng.integers(0, k, n), {}, "how")
    layers = {f"a/long/path/of/a/layer_{i}/kernel": 0.1 * i for i in range(60)}
    ranks = {path: [5, 9] for path in layers}
    for name in names:
        confusion = rng.poisson(0.3, (k, k)) + 90 * np.eye(k, dtype=int)
        test = {"confusion": confusion, "per_class": np.full(k, 90.0)}
        role = {"o": "original", "m": "unlearned", "r": "retrained"}[name[0]]
        record = {"test": test, "surviving_gradient": layers, "ranks": ranks}
        models.append(ShownModel(name, role, record))
        maps.points[name] = rng.normal(size=(n, 2))
        maps.taken[name] = rng.integers(0, k, n)
    blank = Contents(kind="run", title="t", what="w", models=models)
    spectra = {path: np.geomspace(1, 1e-8, 900) for path in layers}
    found = {
        "maps": maps,
        "evaluations": evaluations(blank, LIMITS),
        "statistics": Statistics(9, list(layers), spectra, {"m1": layers}),
        "relearning": MissingError("no"),
        "membership": MissingError("no"),
    }
    contents = dataclasses.replace(
        blank,
        class_names=tuple(f"a class of number {c}" for c in range(k)),
        forget_classes=(3, 44),
    )
    text = page(contents, Measures(found))
    assert len(text.encode()) < 3_000_000
    assert text.count("<image") == len(names)  # of a matrix, no shape a cell
    assert "of 60 layers" in text
    assert f"40 of {k}" in section(text, "classes")


def test_models_are_told_apart_without_colours():
    models = [ShownModel(f"m{n}", "unlearned") for n in range(5)]
    models += [ShownModel("original", "original")]
    models += [ShownModel(f"r{n}", "retrained") for n in range(2)]
    found = looks(models)
    assert len({(look.marker, look.dash) for look in found.values()}) == len(models)
