"""Seconds by stage, compilation split off."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from jaxunlearn.descent.stopwatch import Stopwatch

TRACE = "/jax/core/compile/jaxpr_trace_duration"
COMPILE = "/jax/core/compile/backend_compile_duration"


def listeners():
    """How many listeners a recorded event reaches, ours included."""
    from jax._src import monitoring

    return len(monitoring.get_event_duration_listeners())


def slow_to_trace(seconds):
    @jax.jit
    def function(x):
        time.sleep(seconds)
        return x + 1

    return function


def test_a_stage_adds_up_over_its_openings():
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("steps"):
            time.sleep(0.02)
    assert 0.04 <= watch.seconds["steps"] < 0.2
    assert watch.seconds["compile"] == 0


def test_an_inner_stage_pauses_the_outer_one():
    watch = Stopwatch()
    begin = time.perf_counter()
    with watch.stage("outer"):
        time.sleep(0.02)
        with watch.stage("inner"):
            time.sleep(0.05)
        time.sleep(0.02)
    elapsed = time.perf_counter() - begin
    assert watch.seconds["inner"] >= 0.05
    assert 0.04 <= watch.seconds["outer"] <= elapsed - watch.seconds["inner"] + 1e-9
    assert sum(watch.seconds.values()) == pytest.approx(elapsed, abs=0.01)


def test_a_stage_inside_itself_counts_once():
    watch = Stopwatch()
    with watch.stage("a"), watch.stage("a"):
        time.sleep(0.03)
    assert 0.03 <= watch.seconds["a"] < 0.06


def test_tracing_and_compiling_go_to_their_own_entry():
    watch, x = Stopwatch(), jnp.ones(3)
    function = slow_to_trace(0.1)
    begin = time.perf_counter()
    with watch.stage("steps"):
        function(x).block_until_ready()
        time.sleep(0.03)
    elapsed = time.perf_counter() - begin
    assert watch.seconds["compile"] >= 0.1
    assert watch.seconds["steps"] >= 0.03
    assert sum(watch.seconds.values()) == pytest.approx(elapsed, abs=0.01)
    compiled = watch.seconds["compile"]
    with watch.stage("steps"):
        function(x).block_until_ready()
    assert watch.seconds["compile"] == compiled


def test_a_function_traced_inside_another_is_not_counted_twice():
    watch, x = Stopwatch(), jnp.ones(3)
    inner = slow_to_trace(0.05)

    @jax.jit
    def outer(x):
        time.sleep(0.05)
        return inner(x) + inner(2 * x)

    begin = time.perf_counter()
    with watch.stage("steps"):
        outer(x).block_until_ready()
    elapsed = time.perf_counter() - begin
    assert 0.1 <= watch.seconds["compile"] <= elapsed


def test_nested_and_overlapping_reports_are_a_union():
    watch = Stopwatch()
    with watch.stage("steps"):
        time.sleep(0.06)
        jax.monitoring.record_event_duration_secs(TRACE, 0.02)
        jax.monitoring.record_event_duration_secs(TRACE, 0.03)
        jax.monitoring.record_event_duration_secs("/jax/core/other", 0.05)
        time.sleep(0.02)
        jax.monitoring.record_event_duration_secs(COMPILE, 0.03)
    assert watch.seconds["compile"] == pytest.approx(0.05, abs=0.01)


def test_a_report_longer_than_the_stage_is_cut_at_its_opening():
    watch = Stopwatch()
    with watch.stage("steps"):
        time.sleep(0.01)
        jax.monitoring.record_event_duration_secs(COMPILE, 100.0)
    assert watch.seconds["compile"] < 1
    assert watch.seconds["steps"] >= 0


def test_other_threads_do_not_count():
    watch = Stopwatch()
    with watch.stage("steps"):
        arguments = (COMPILE, 0.01)
        thread = threading.Thread(
            target=jax.monitoring.record_event_duration_secs, args=arguments
        )
        thread.start()
        thread.join()
    assert watch.seconds["compile"] == 0


def test_nothing_listens_outside_a_stage():
    before, watch = listeners(), Stopwatch()
    with watch.stage("a"):
        assert listeners() == before + 1
        with watch.stage("b"):
            assert listeners() == before + 1
    assert listeners() == before
    with pytest.raises(KeyError), watch.stage("a"):
        raise KeyError
    assert listeners() == before
    jax.monitoring.record_event_duration_secs(COMPILE, 1.0)
    assert watch.seconds["compile"] == 0


def test_two_watches_do_not_disturb_each_other():
    outer, inner = Stopwatch(), Stopwatch()
    with outer.stage("a"):
        with inner.stage("b"):
            slow_to_trace(0.03)(jnp.ones(3)).block_until_ready()
        assert inner.seconds["compile"] >= 0.03
    assert outer.seconds["compile"] >= inner.seconds["compile"] - 1e-3


def test_seconds_of_another_watch_can_be_added():
    watch = Stopwatch()
    watch.add({"compile": 1.0, "steps": 2.0})
    watch.add({"steps": 2.0})
    assert watch.seconds == {"compile": 1.0, "steps": 4.0}
    watch.seconds["steps"] = 0
    assert watch.seconds["steps"] == 4.0


def test_a_stage_cannot_be_called_compile():
    stage = Stopwatch().stage("compile")
    with pytest.raises(ValueError, match="cannot be called 'compile'"), stage:
        pass
