"""Records as plain values: there, back, and what is refused."""

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest

from jaxunlearn.serialization import (
    atomic_write,
    check_fields,
    checksum,
    from_dict,
    read_json,
    to_dict,
    to_json,
    write_json,
)


class Inner(NamedTuple):
    a: int


@dataclasses.dataclass(frozen=True)
class Nested:
    weight: float = 1.0

    def __post_init__(self):
        if self.weight < 0:
            msg = f"weight must not be negative; it is {self.weight}."
            raise ValueError(msg)


@dataclasses.dataclass(frozen=True)
class Record:
    count: int = 1
    rate: float = 0.1
    either: float | int = 1
    flag: bool = False
    name: str | None = None
    place: Path | None = None
    kind: Literal["a", "b"] = "a"
    several: tuple[int, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    annotated: Annotated[tuple[float, ...] | None, "help"] = None
    nested: Nested = Nested()


DEEP = functools.reduce(lambda inner, _: [inner], range(10**5), 1)

CHANGED = Record(
    *(2, 0.5, 0.25, True, "x", Path("a/b"), "b", (1, 2), (3, 4.0)),
    options={"width": 3},
    annotated=(0.5,),
    nested=Nested(weight=3.0),
)


@pytest.mark.parametrize("record", [Record(), CHANGED])
def test_records_come_back_through_json(record):
    stored = json.loads(to_json(record))
    assert from_dict(Record(), stored) == record
    assert from_dict(Record, stored) == record


def test_integers_serve_as_numbers_and_keep_their_type_where_both_may_stand():
    found = from_dict(Record(), {"rate": 1, "either": 2, "annotated": [1]})
    assert [type(x) for x in (found.rate, found.either, *found.annotated)] == [
        float,
        int,
        float,
    ]


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ([1], r"the must be an object; it is \[1\]"),
        ({"rate": "0.1"}, "the rate must be a number; it is '0.1'"),
        ({"rate": 10**400}, "the rate must be a number; it is 1000"),
        ({"count": DEEP}, r"the count must be an integer; it is \[\[\["),
        ({"several": DEEP}, "the several must be a list with an integer"),
        ({"name": list(range(10**5))}, "the name must be a string or null"),
        ({"x" * 10**4: 1}, "There is no the xxx.*x; there are: count"),
        ({"count": "two"}, "the count must be an integer; it is 'two'"),
        ({"count": 2.0}, "the count must be an integer; it is 2.0"),
        ({"count": True}, "the count must be an integer; it is True"),
        ({"rate": False}, "the rate must be a number"),
        ({"rate": None}, "the rate must be a number; it is None"),
        ({"flag": 1}, "the flag must be true or false"),
        ({"name": 3}, "the name must be a string or null; it is 3"),
        ({"place": 3}, "the place must be a string or null"),
        ({"kind": "c"}, "the kind must be one of 'a', 'b'"),
        ({"kind": ["a"]}, "the kind must be one of 'a', 'b'"),
        ({"several": 3}, "the several must be a list with an integer in each place"),
        ({"several": [1, "2"]}, "the several must be a list with an integer"),
        ({"pair": [1]}, "the pair must be a list of 2"),
        ({"annotated": ["x"]}, "the annotated must be a list with a number"),
        ({"options": []}, "the options must be an object"),
        ({"nested": 3}, "the nested must be an object; it is 3"),
        ({"nested": {"weight": "x"}}, "the nested.weight must be a number"),
        ({"nested": {"weight": -1}}, "weight must not be negative"),
        ({"nested": {"mass": 1}}, "There is no the nested.mass; there are: weight"),
        ({"novel": 1}, "There is no the novel; there are: count, rate, .*nested"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(stored, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        from_dict(Record(), stored, "the ")
    assert len(str(raised.value)) < 1000


def test_arrays_records_and_what_is_not_finite_become_plain():
    value = {
        "array": np.array([[1.0, np.nan], [np.inf, 2.0]]),
        "number": np.float32(0.5),
        "trial": Inner(3)._asdict(),
        "path": Path("a"),
        "nested": [Nested(), (1, float("-inf"))],
    }
    plain = {
        "array": [[1.0, None], [None, 2.0]],
        "number": 0.5,
        "trial": {"a": 3},
        "path": "a",
        "nested": [{"weight": 1.0}, [1, None]],
    }
    assert to_dict(value) == plain
    assert json.loads(to_json(value)) == plain


def test_lists_of_numbers_take_one_line_and_strings_stay_as_they_are():
    value = {"rows": [[1, 2], [3, None]], "text": "[\n 1,  2]", "words": ["a", "b"]}
    assert "    [1, 2],\n    [3, null]\n" in to_json(value)
    assert json.loads(to_json(value)) == value


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b'{"a": NaN}', "is no JSON .NaN is no number there"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "is no JSON"),
        (b'{"a":' * 10**5 + b"1" + b"}" * 10**5, "is nested too deep"),
        (b"[1]", "must hold a JSON object; it holds a list"),
    ],
)
def test_files_that_hold_no_object_are_refused(tmp_path, content, sentence):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} {sentence}"):
        read_json(path)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be read"):
        read_json(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(text, error=None):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
            assert path.read_text() == "old"
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        write("half", KeyboardInterrupt())
    assert path.read_text() == "old"
    write("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_whole_with_a_line_break_at_its_end(tmp_path):
    write_json(tmp_path / "a.json", {"rate": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n  "rate": null\n}\n'
    assert read_json(tmp_path / "a.json") == {"rate": None}


def test_what_is_no_value_is_refused():
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        to_dict({"augment": object()})


def test_a_checksum_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"bits")
    assert checksum(tmp_path / "a") == hashlib.sha256(b"bits").hexdigest()


def test_content_and_name_are_on_the_disk_in_this_order(tmp_path, monkeypatch):
    done, replace = [], os.replace

    def note(descriptor):
        done.append(Path(f"/dev/fd/{descriptor}").resolve().name)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("name"), replace(*a)))
    write_json(tmp_path / "a.json", {})
    assert done == [f".a-{os.getpid()}.json", "name", tmp_path.name]


@dataclasses.dataclass(frozen=True)
class Numbers:
    count: int = 1
    rate: float | None = 0.5
    places: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        check_fields(self)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"count": "10"}, "Numbers.count must be an integer; it is '10'"),
        ({"count": True}, "Numbers.count must be an integer; it is True"),
        ({"count": 1.5}, "Numbers.count must be an integer; it is 1.5"),
        ({"rate": "0.1"}, "Numbers.rate must be a number or None; it is '0.1'"),
        ({"places": "12"}, "places must be a list with a number in each place"),
        ({"count": np.zeros((9, 9))}, "count must be an integer; it is .{,99}$"),
    ],
)
def test_fields_of_another_type_are_refused(given, words):
    with pytest.raises(TypeError, match=words):
        Numbers(**given)


def test_fields_become_numbers_and_tuples_of_python():
    given = Numbers(np.int64(3), np.float32(0.25), [1, np.float64(2)])
    assert given == Numbers(3, 0.25, (1.0, 2.0))
    assert [type(given.count), type(given.rate)] == [int, float]
    assert hash(given) == hash(Numbers(3, 0.25, (1.0, 2.0)))
