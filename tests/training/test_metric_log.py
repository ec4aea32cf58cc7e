"""Metrics as lines of JSON: whole, strict, each step once."""

import json
import math
import sys

import pytest

from jaxunlearn.training.metric_log import MetricLog, read_metrics


def steps(path):
    return [record["step"] for record in read_metrics(path)]


def test_each_record_is_on_the_disk_as_soon_as_it_is_given(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricLog(path) as log:
        for step in range(3):
            log({"step": step, "loss": 0.5})
            assert read_metrics(path)[-1] == {"step": step, "loss": 0.5}


def test_a_number_that_json_has_not_becomes_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricLog(path) as log:
        log({"step": 0, "loss": math.nan})

    def refuse(name):
        raise AssertionError(name)

    line = path.read_text().rstrip("\n")
    assert json.loads(line, parse_constant=refuse) == {"step": 0, "loss": None}


def test_a_resumed_log_has_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for run in (range(7), range(4, 6), range(6, 9)):
        with MetricLog(path) as log:
            for step in run:
                log({"step": step, "run": run.start})
    assert steps(path) == list(range(9))
    assert [r["run"] for r in read_metrics(path)] == [0] * 4 + [4] * 2 + [6] * 3


def test_a_torn_last_line_is_cut_off_even_if_nothing_follows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":0}\n{"step":1}\n{"step":2,"lo')
    with MetricLog(path):
        pass
    assert path.read_text() == '{"step":0}\n{"step":1}\n'
    assert steps(path) == [0, 1]


def test_what_is_no_record_is_cut_off_with_all_that_follows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":0}\nnonsense\n{"step":2}\n')
    with MetricLog(path) as log:
        log({"step": 5})
    assert steps(path) == [0, 5]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        MetricLog(tmp_path / "nowhere" / "metrics.jsonl")


def test_tensorboard_files_hold_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    board = tmp_path / "board"
    for run in (range(4), range(2, 6)):
        with MetricLog(tmp_path / "metrics.jsonl", board) as log:
            for step in run:
                log({"step": step, "epoch": 0, "loss": step / 2})
    (path,) = board.iterdir()
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        # A record: length, its checksum, the event, the event's checksum.
        size = int.from_bytes(data[place : place + 8], "little")
        event = Event.FromString(data[place + 12 : place + 12 + size])
        place += 12 + size + 4
        values = event.summary.value
        found += [(event.step, v.tag, v.simple_value) for v in values]
    assert found == [(step, "loss", step / 2) for step in range(6)]


def test_without_the_package_tensorboard_is_refused_in_a_sentence(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"tensorboardX: pip install 'jaxunlearn\["):
        MetricLog(tmp_path / "metrics.jsonl", tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
