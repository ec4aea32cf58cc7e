"""Reporting of progress: to nobody, to a function, to bars."""

import contextlib

import pytest

from jaxunlearn.progress import reporting


def test_nobody_hears_of_it_by_default(capfd):
    with reporting(None) as report:
        report("steps", 1, 2)
    assert capfd.readouterr() == ("", "")


def test_a_function_is_handed_on_as_it_is():
    def listen(stage, done, total):
        raise AssertionError

    with reporting(listen) as outer, reporting(outer) as inner:
        assert inner is listen


def test_a_bar_shows_every_stage_on_the_error_stream(capfd):
    with reporting("bar") as report:
        for done in range(3):
            report("statistics", done + 1, 3)
        for done in range(4):
            report("steps", done + 1, 4)
        report("steps", 1, 4)  # a second round
    out, err = capfd.readouterr()
    assert not out
    assert "statistics: 100%" in err
    assert "3/3" in err
    assert "4/4" in err
    assert "1/4" in err


def test_bars_end_with_what_they_report_on(capfd):
    with contextlib.suppress(KeyError), reporting("bar") as report:
        report("steps", 1, 4)
        raise KeyError
    assert "1/4" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", ["bars", 3, True])
def test_what_is_no_way_of_reporting_is_refused(wrong):
    with pytest.raises(TypeError, match="progress must be None"), reporting(wrong):
        pass
