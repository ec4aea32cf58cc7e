"""Every method, where samples of all classes are to be forgotten."""

import jax
import numpy as np
import pytest
from blocks import CLASSES, KEY, TEST, TRAIN, trained

import jaxunlearn as ju
from jaxunlearn import methods

FORGET, RETAIN = ju.split_by_index(TRAIN, np.arange(0, 270, 10))
TASK = ju.Task(FORGET, RETAIN, (), num_classes=CLASSES, train=lambda d, k: trained())

# Those of whole classes, and what they say.
REFUSING = {
    "mask-head": "MaskHead forbids whole classes",
    "unsir": "UNSIR learns noise of whole classes",
    "erase-concept": "EraseConcept drops the directions that features of a class share",
    "layerwise-teacher": "LayerwiseTeacher aims at the means of the classes that are "
    "retained",
}
QUICK = {"fine-tune", "retrain", *REFUSING}
SHORT = {
    "covarnav": {"inversion_steps": 2},
    "scrub": {"steps": 4, "rounds": 3},
    "reset-and-distill": {"budget": 60.0},
}


def method_of(name):
    kind = methods.by_name[name]
    few = {"steps": 2} if hasattr(kind(), "steps") else {}
    return kind(**few | SHORT.get(name, {}))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK))
        for name in methods.by_name
    ],
)
def test_it_works_on_samples_or_says_why_that_has_no_meaning(name):
    original, method = trained(), method_of(name)
    if name in REFUSING:
        sentence = f"{REFUSING[name]}, and forget_classes is \\(\\): it has no meaning"
        for call in (method, lambda *a, **k: methods.forget_task(method, *a, **k)):
            with pytest.raises(ValueError, match=sentence):
                call(original, TASK, key=KEY)
        return
    result = method(original, TASK, key=KEY)
    assert np.isfinite(np.asarray(result.classifier(TEST.images))).all()
    before, after = (
        jax.tree.map(np.shape, c.params) for c in (original, result.classifier)
    )
    assert before == after


def test_a_grid_is_refused_before_the_method_is_tried():
    sentence = "MaskHead forbids whole classes"
    with pytest.raises(ValueError, match=sentence):
        methods.forget_task(
            *(methods.MaskHead(), trained(), TASK),
            key=KEY,
            validation=TEST,
            grid=[0.1],
        )
