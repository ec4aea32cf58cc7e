"""Metrics as lines of JSON: whole, strict, each step once."""

import json
import math

import pytest
from killing import read_metrics

from jaxunlearn.training.reports import MetricLog


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
