"""What meets running statistics in a program; for weights see `test_inputs`."""

import jax
import numpy as np
import pytest
from normalised import CASES, OTHERS, draw_classifier
from oracles import by_path, relative_error

from jaxunlearn.capture.layers import unmatched_state
from jaxunlearn.capture.walk import capture

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def captured(classifier, images):
    """What a walk sees, compiled, and its static half."""
    static = []

    def run(classifier, images):
        found = capture(classifier, images)
        static.append(found.normalisations)
        return found.logits, found.operands

    logits, operands = jax.jit(run)(classifier, images)
    return logits, operands, static[-1]


@pytest.mark.long
@pytest.mark.core
@every_case
def test_inputs_of_batch_norm_are_those_of_the_twin(case):
    with jax.enable_x64(True):
        classifier, images = case.classifier(), case.images(3)
        logits, operands, normalisations = captured(classifier, images)
    expected, tape = case.run_twin(classifier, images)
    # The oracle itself: inputs that give the logits are the inputs.
    assert relative_error(logits, expected) <= case.error
    paths = [p.removeprefix("batch_stats/") for p in by_path(classifier.state)]
    assert len(normalisations) == len(tape.inputs())
    for (key, found), (path, inputs) in zip(
        normalisations.items(), tape.inputs(), strict=True
    ):
        operand, weight = operands[key]
        assert relative_error(np.reshape(operand, inputs.shape), inputs) <= case.error
        np.testing.assert_array_equal(weight, 1)
        names = [f"{path}/{name}".lstrip("/") for name in ("mean", "var")]
        assert [paths[found.mean], paths[found.variance]] == names
        assert found.axes == case.axes
        assert found.scans == case.scans


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_batch_norm_is_not_taken_for_one(name):
    classifier = draw_classifier(OTHERS[name], (4, 4, 2), np.float32)
    found = []
    jax.eval_shape(
        lambda images: found.append(capture(classifier, images)),
        jax.ShapeDtypeStruct((2, 4, 4, 2), np.float32),
    )
    assert found[0].uses
    assert not found[0].normalisations


@pytest.mark.parametrize("name", ["only a mean", "divided by the variance"])
def test_state_that_no_batch_norm_explains_is_named(name):
    images = np.ones((2, 4, 4, 2), np.float32)
    classifier = draw_classifier(OTHERS[name], (4, 4, 2), np.float32)
    used = ["mean"] if name == "only a mean" else ["mean", "var"]
    paths = [f"batch_stats/{leaf}" for leaf in used]
    assert unmatched_state(classifier, images) == paths
    matched = draw_classifier(CASES[-1].build, (4, 4, 2), np.float32)
    assert unmatched_state(matched, images) == []
