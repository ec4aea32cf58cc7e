"""The page in headless Chromium: sorting, phones, contrast, labels, the console."""

import dataclasses
import shutil

import pytest
import reported

from jaxunlearn.report.limits import Limits
from jaxunlearn.report.measures import measure
from jaxunlearn.report.page import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESK = 390, 1100

pytestmark = pytest.mark.long

# Of every text that is seen, how far it stands out from what is behind it (WCAG 2.1).
CONTRAST = """
const lit = (v) => {
  const c = v.map((x) => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; });
  return .2126 * c[0] + .7152 * c[1] + .0722 * c[2];
};
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const behind = (node) => {
  for (let e = node; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c.slice(0, 3);
  }
  return [255, 255, 255];
};
const found = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || ["SCRIPT", "STYLE", "title"].includes(e.tagName)) continue;
  if (e.checkVisibility && !e.checkVisibility()) continue;
  const style = getComputedStyle(e);
  const drawn = e instanceof SVGElement;
  const color = parse(drawn ? style.fill : style.color).slice(0, 3);
  const [a, b] = [lit(color), lit(behind(e))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  found.push([ratio, e.textContent.trim().slice(0, 40)]);
}
return found;
"""  # noqa: E501

# What somebody who does not see the page would miss.
LABELS = """
const wrong = [];
const named = (e) => (e.getAttribute("aria-label") || e.textContent || "").trim();
for (const e of document.querySelectorAll("button, a, summary, [role=region], svg, th"))
  if (!named(e)) wrong.push(e.outerHTML.slice(0, 80));
for (const e of document.querySelectorAll("img"))
  if (!e.alt) wrong.push(e.outerHTML.slice(0, 80));
for (const e of document.querySelectorAll("section"))
  if (!document.getElementById(e.getAttribute("aria-labelledby"))) wrong.push(e.id);
for (const e of document.querySelectorAll("th"))
  if (!["row", "col"].includes(e.scope)) wrong.push(e.outerHTML.slice(0, 80));
for (const e of document.querySelectorAll(".scroll, pre"))
  if (e.tabIndex !== 0) wrong.push("no keyboard reaches " + e.outerHTML.slice(0, 60));
let level = 0;
for (const e of document.querySelectorAll("h1, h2, h3, h4")) {
  const n = Number(e.tagName[1]);
  if (n > level + 1) wrong.push("a level is left out before " + e.textContent);
  level = n;
}
if (!document.documentElement.lang || !document.title) wrong.push("lang or title");
return wrong;
"""

COLUMN = """
const [table, n] = [document.querySelector("#results table"), arguments[0]];
return [...table.tBodies[0].rows].map((row) => row.children[n].firstChild?.data ?? "");
"""


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium and its driver are not installed here")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    contents = reported.contents()
    # Longer than a phone is wide, without a place to break.
    contents = dataclasses.replace(contents, title="a" * 80, note="b" * 120)
    measures = measure(contents, Limits(points=40, relearn_steps=12))
    place = tmp_path_factory.mktemp("page") / "report.html"
    place.write_text(page(contents, measures))
    return place.as_uri()


def show(browser, address, *, width=DESK, scheme="light", opened=False):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", size | {"mobile": width == PHONE}
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(address)
    if opened:
        browser.execute_script(
            "for (const e of document.querySelectorAll('details')) e.open = true"
        )


def test_nothing_is_said_in_the_console(browser, address):
    show(browser, address, opened=True)
    assert browser.get_log("browser") == []
    assert (
        browser.execute_script("return document.querySelectorAll('svg').length") == 15
    )
    # Nothing but the page itself was asked for, and no name of a class has run.
    asked = "return performance.getEntriesByType('resource').map((e) => e.name)"
    names = browser.execute_script(asked)
    assert all(name.startswith("data:") for name in names)


def test_the_table_sorts_by_click(browser, address):
    show(browser, address)
    heads = browser.find_elements("css selector", "#results thead th")
    heads[1].find_element("tag name", "button").click()
    assert heads[1].get_attribute("aria-sort") == "ascending"
    assert browser.execute_script(COLUMN, 1) == ["0.0", "9.5", "75.0"]  # not as text
    heads[1].find_element("tag name", "button").click()
    assert heads[1].get_attribute("aria-sort") == "descending"
    assert browser.execute_script(COLUMN, 1) == ["75.0", "9.5", "0.0"]
    heads[2].find_element("tag name", "button").click()
    assert heads[1].get_attribute("aria-sort") == "none"
    # Where there is no number, the row comes last, both ways.
    assert browser.execute_script(COLUMN, 2) == ["57.5", "80", ""]
    heads[2].find_element("tag name", "button").click()
    assert browser.execute_script(COLUMN, 2) == ["80", "57.5", ""]


def test_the_table_sorts_by_keyboard(browser, address):
    from selenium.webdriver.common.keys import Keys

    show(browser, address)
    before = browser.execute_script(COLUMN, 0)
    # From the box around the table one key reaches the first heading.
    box = browser.find_element("css selector", "#results .scroll")
    box.send_keys(Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.tag_name == "button"
    focused.send_keys(Keys.ENTER)
    assert browser.execute_script(COLUMN, 0) == sorted(before)
    focused.send_keys(Keys.SPACE)
    assert browser.execute_script(COLUMN, 0) == sorted(before, reverse=True)


@pytest.mark.parametrize("opened", [False, True])
def test_a_phone_scrolls_in_one_direction(browser, address, opened):
    show(browser, address, width=PHONE, opened=opened)
    wide = "return [document.documentElement.scrollWidth, window.innerWidth]"
    assert browser.execute_script(wide) == [PHONE, PHONE]
    figures = "return Math.max(...[...document.querySelectorAll('svg')].map((e) => e.getBoundingClientRect().right))"  # noqa: E501
    assert browser.execute_script(figures) <= PHONE


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(browser, address, scheme):
    show(browser, address, scheme=scheme, opened=True)
    found = browser.execute_script(CONTRAST)
    assert len(found) > 200
    assert [text for ratio, text in found if ratio < 4.5] == []
    paper = browser.execute_script(
        "return getComputedStyle(document.body).backgroundColor"
    )
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_all_that_is_seen_is_also_said(browser, address):
    show(browser, address, opened=True)
    assert browser.execute_script(LABELS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_axe_finds_nothing(browser, address, scheme, width):
    from axe_core_python.selenium import Axe

    show(browser, address, width=width, scheme=scheme, opened=True)
    # A drawing is one image with a label; its thousands of shapes take axe minutes.
    given = {"exclude": [["svg"]]}, {"resultTypes": ["violations"]}
    found = Axe().run(browser, *given)
    assert len(found["passes"]) > 20
    assert {one["id"]: one["nodes"][0]["html"] for one in found["violations"]} == {}


def test_all_is_open_on_paper(browser, address):
    show(browser, address)
    closed = "return document.querySelectorAll('details:not([open])').length"
    before = browser.execute_script(closed)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(closed) == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(closed) == before > 0
