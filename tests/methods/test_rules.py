"""The rule of a grid where samples are forgotten, against its definition."""

import warnings

import jax
import numpy as np
import pytest
from blocks import CLASSES, KEY, TEST, TRAIN, trained
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxunlearn as ju
from jaxunlearn import methods
from jaxunlearn.methods.grid import check_grid, choose
from jaxunlearn.methods.rules import (
    MARGIN,
    TOLERANCE,
    NotForgotten,
    SampleRule,
    SampleTrial,
    heldout,
    trial_records,
    weighted,
)

INDICES = np.arange(0, 270, 10)
FORGET, RETAIN = ju.split_by_index(TRAIN, INDICES)
TASK = ju.Task(FORGET, RETAIN, (), num_classes=CLASSES)


@pytest.fixture(scope="module")
def original():
    return trained()


@pytest.fixture
def rule(original):
    """With an original of 100 % on the forget samples and 90 % on all others."""
    rule = SampleRule(original, FORGET, TEST)
    rule._original = SampleTrial(0.0, 90.0, 90.0, 100.0, 0.0)
    return rule


def by_definition(trials, gentlest):
    kept = [t for t in trials if t.validation >= 90.0 - MARGIN]
    nearer = [t for t in kept if abs(t.forgotten - t.heldout) < 10.0]
    if not nearer:
        return gentlest(t.value for t in trials)
    gaps = {t.value: abs(t.forgotten - t.heldout) for t in nearer}
    return gentlest(v for v, g in gaps.items() if g <= min(gaps.values()) + TOLERANCE)


percent = st.integers(160, 200).map(lambda n: n / 2)


@given(
    st.dictionaries(
        st.sampled_from([0.01, 0.03, 0.1, 0.3]),
        st.tuples(percent, percent, percent, st.just(0.1)),
        min_size=1,
    )
)
@settings(max_examples=50, deadline=None)
def test_the_rule_by_brute_force(script):
    rule = SampleRule.__new__(SampleRule)
    rule._original = SampleTrial(0.0, 90.0, 90.0, 100.0, 0.0)
    trials = [SampleTrial(v, *numbers) for v, numbers in script.items()]
    for gentlest in (min, max):
        assert rule.best(gentlest, trials).value == by_definition(trials, gentlest)


@pytest.mark.long
def test_numbers_of_a_trial_are_those_of_their_definitions(original):
    rule = SampleRule(original, FORGET, TEST)
    other = original.replace(params=jax.tree.map(lambda p: p * 0.7, original.params))
    before, after, forgotten = (
        np.asarray(c(d.images), np.float64)
        for c, d in ((original, TEST), (other, TEST), (other, FORGET))
    )
    right = after.argmax(1) == TEST.labels
    counts = [int((c == FORGET.labels).sum()) for c in range(CLASSES)]
    each = [right[c == TEST.labels].mean() for c in range(CLASSES)]
    expected = (
        100 * right.mean(),
        100 * sum(n * a for n, a in zip(counts, each, strict=True)) / sum(counts),
        100 * (forgotten.argmax(1) == FORGET.labels).mean(),
        np.sqrt(((after - before) ** 2).sum() / (before**2).sum()),
    )
    found = rule.judge([ju.Result(other)])
    assert found == pytest.approx(expected, rel=1e-4)


def test_each_class_counts_as_often_as_among_the_forgotten():
    assert weighted(np.array([80.0, 50.0, np.nan]), [3, 1, 0]) == 72.5


def test_forgotten_samples_are_not_held_out():
    mixed = ju.Data(
        np.concatenate([TEST.images, FORGET.images[:5]]),
        np.concatenate([TEST.labels, FORGET.labels[:5]]),
    )
    np.testing.assert_array_equal(heldout(mixed, FORGET).images, TEST.images)
    with pytest.raises(ValueError, match=r"no sample of class 0 that is not to be"):
        heldout(FORGET, FORGET)


def chosen(rule, script):
    grid = check_grid(methods.Unprojected(), list(script), TEST, [()])

    def judge(method):
        if method.learning_rate not in script:
            raise FloatingPointError
        return script[method.learning_rate]

    tried = []
    choice = choose(grid, judge, lambda *done: tried.append(done), rule)
    return choice, tried[-1][-1]


@pytest.mark.parametrize(
    ("script", "value", "trials", "at_edge"),
    [
        # The middle: nothing to go on for.
        ({1: (90, 90, 99, 0), 2: (90, 90, 91, 0), 3: (80, 80, 20, 0)}, 2, 3, False),
        # The best at the upper end: a decade more, where all diverge.
        ({1: (90, 90, 99, 0), 2: (90, 90, 95, 0), 3: (90, 90, 90, 0)}, 3, 6, False),
        # Forgets only at a cost that is not allowed: the gentlest, and no search.
        ({1: (90, 90, 100, 0), 2: (90, 89, 100, 0), 3: (70, 70, 70, 0)}, 1, 3, False),
        # Even the gentlest costs too much: gentler ones are tried.
        ({1: (80, 80, 99, 0), 2: (80, 80, 90, 0), 3: (70, 70, 70, 0)}, 1, 6, False),
        # Even the harshest does nothing at all.
        ({v: (90, 90, 100, v) for v in (1, 2, 3)}, 1, 3, False),
    ],
)
def test_a_grid_of_samples_goes_on_where_a_better_value_may_lie(
    rule, script, value, trials, at_edge
):
    choice, tried = chosen(rule, script)
    assert choice.method.learning_rate == value
    assert (tried, choice.at_edge) == (trials, at_edge)


def test_where_none_is_nearer_it_says_so_with_numbers(rule):
    script = {1: (90, 90, 100, 0.1), 2: (60, 60, 70, 0.5), 3: (50, 50, 50, 0.7)}
    choice, _ = chosen(rule, script)
    trace = ju.Trace(surviving_gradient={"a": 0.004, "b": 0.02})
    result = ju.Result(trained(), trace)
    text = rule.caution(choice.method, choice.trials, result)
    assert text.startswith("Unprojected does not forget these samples.")
    assert "At learning rate 2 it would be right on 70.0 % of them" in text
    assert "leaves at most 2 % of the forget gradient of a layer (b)." in text
    good = (*choice.trials, SampleTrial(4, 90, 90, 92, 0.1))
    assert rule.caution(choice.method, good, result) == ""
    part = (*choice.trials, SampleTrial(4, 90, 90, 97, 0.1))
    text = rule.caution(choice.method, part, result)
    assert "takes more than 3.0 of these 10.0 points away." in text


def test_a_record_names_its_numbers():
    (record,) = trial_records({"alpha": 3}, [SampleTrial(3, 90.0, 89.0, 95.0, 0.1)])
    names = ["alpha", "validation", "heldout", "forgotten", "change"]
    assert list(record) == names


def test_a_method_that_cannot_forget_them_says_so_and_leaves_the_model(original):
    method = methods.FineTune(steps=2)
    easy = TEST.labels == original(TEST.images).argmax(axis=1)
    validation = ju.Data(TEST.images[easy], TEST.labels[easy])
    with pytest.warns(NotForgotten, match="FineTune does not forget these samples"):
        result = methods.forget_task(
            *(method, original, TASK), key=KEY, validation=validation, grid=[1e-7, 1e-6]
        )
    assert result.trace.caution.startswith("FineTune does not forget")
    assert result.trace.tuned == {"learning_rate": 1e-7}
    after = np.asarray(result.classifier(TEST.images))
    np.testing.assert_allclose(after, np.asarray(original(TEST.images)), atol=1e-3)


@pytest.mark.long
def test_the_margin_holds_for_what_is_chosen(original):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotForgotten)
        result = methods.forget_task(
            *(methods.Unprojected(steps=20), original, TASK),
            key=KEY,
            validation=TEST,
            grid=[1e-4, 1e-3, 1e-2, 0.1],
        )
    before, after = (
        ju.evaluate(c, TEST, ()).retained_weighted
        for c in (original, result.classifier)
    )
    assert after >= before - MARGIN
