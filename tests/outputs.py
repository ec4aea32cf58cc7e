"""Keys that `docs/outputs.md` documents, compared with what is written."""

import functools
import re
from pathlib import Path

from jaxunlearn import methods
from jaxunlearn.cli.judging import SAMPLE_METRICS
from jaxunlearn.datasets.splits import SPLITS

PAGE = Path(__file__).parent.parent / "docs" / "outputs.md"
_ROW = re.compile(r"\| `([^`]+)` \|([^|]*)\|")
_LINK = re.compile(r"\[\w+\]\(#(\w+)\)")
# What may stand for a word in capitals; for others anything.
_NAMES = {
    "FIELD": {getattr(method, "tuned", None) for method in methods.by_name.values()},
    "METHOD": {name.replace("-", "_") for name in methods.by_name},
    "METRIC": set(SAMPLE_METRICS),
    "SPLIT": set(SPLITS),
}


@functools.cache
def tables():
    """Under each heading, the unit or the record of every key."""
    found = {}
    for section in re.split(r"^##+ ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        rows = _ROW.findall(text)
        assert len({*dict(rows)}) == len(rows), f"{heading}: a key stands there twice"
        found[heading] = {key: unit.strip() for key, unit in rows}
    return found


def check_keys(record, *headings, complete):
    """Every key of a record is documented, and all keys of `complete` are written."""
    rows = [(heading, key) for heading in headings for key in tables()[heading]]
    written, unknown = set(), set()
    _walk(record, [(*row, _parts(row[1])) for row in rows], "", written, unknown)
    assert not unknown, f"docs/outputs.md lacks {sorted(unknown)} of {headings[0]}"
    missing = {
        (heading, key)
        for heading in complete
        for key in tables()[heading]
        if (heading, key) not in written
    }
    assert not missing, f"docs/outputs.md has what is never written: {sorted(missing)}"


def _parts(key):
    """`a[].B` as `("a", "[]", "B")`."""
    return tuple(key.replace("[]", ".[]").split("."))


def _walk(value, rows, path, written, unknown):
    """`rows`: heading, key and the rest of the key of those that are met here."""
    ended = {(heading, key) for heading, key, rest in rows if not rest}
    written |= ended
    for heading, key in ended:
        if link := _LINK.search(tables()[heading][key]):
            record = next(h for h in tables() if _anchor(h) == link[1])
            rows = [*rows, *((record, k, _parts(k)) for k in tables()[record])]
    rows = [row for row in rows if row[2]]
    if value is None or isinstance(value, dict):
        # There may be none of these names: a method may count nothing.
        written |= {
            (h, k) for h, k, rest in rows if len(rest) == 1 and rest[0].isupper()
        }
    if isinstance(value, dict):
        for name, inner in value.items():
            met = [row for row in rows if _fits(row[2][0], name)]
            exact = [row for row in met if row[2][0] == name]
            # A name that stands there by itself is not also one of many.
            some = exact if any(len(row[2]) == 1 for row in exact) else met
            some = [(h, k, rest[1:]) for h, k, rest in some]
            _walk(inner, some, f"{path}.{name}".lstrip("."), written, unknown)
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        for entry in value:
            some = [(h, k, rest[1:]) for h, k, rest in rows if rest[0] == "[]"]
            _walk(entry, some, f"{path}[]", written, unknown)
    elif not ended and not (value in (None, []) and rows):
        unknown.add(path)


def _fits(part, name):
    """Whether a part of a key is this name, or stands for it."""
    return part == name or (part.isupper() and name in _NAMES.get(part, {name}))


def _anchor(heading):
    return re.sub(r"[^\w ]", "", heading).lower().replace(" ", "-")


def measured(names):
    """Those of the names that no measure of the page describes."""
    known = [re.escape(name).replace("LAYER", ".+") for name in tables()["measures"]]
    pattern = re.compile("|".join(known))
    return {name for name in names if not pattern.fullmatch(name)}
