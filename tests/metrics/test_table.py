"""The table of metrics."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.metrics import METRICS, Judged, Metric, measure, relative_change

MODEL = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
DATA = ju.Data(np.array([1.0, -1.0, 1.0]).reshape(3, 1, 1, 1), [0, 1, 1])


def classifier(slope):
    dense = {"kernel": jnp.array([[slope, -slope]]), "bias": jnp.zeros(2)}
    return ju.freeze(MODEL, {"params": {"layers_1": dense}})


def test_values_are_those_of_the_functions_behind_them():
    original, unlearned = classifier(1.0), classifier(-2.0)
    values = measure(unlearned, DATA, [1], original=original)
    accuracy = ju.evaluate(unlearned, DATA, [1])
    assert values["retained"] == accuracy.retained == 0
    assert values["forgotten"] == accuracy.forgotten == 50
    kept = DATA.images[:1]
    expected = relative_change(original(kept), unlearned(kept))
    assert values["retained_logit_change"] == pytest.approx(expected) == 3
    assert measure(original, DATA, [1])["retained_logit_change"] is None


def test_a_new_metric_is_a_function_and_a_row(monkeypatch):
    def weighted(judged: Judged) -> float:
        return judged.evaluation.forgotten_weighted

    row = Metric("Acc_f", "%", ".1f", "over samples", weighted)
    monkeypatch.setitem(METRICS, "forgotten_weighted", row)
    assert measure(classifier(1.0), DATA, [1])["forgotten_weighted"] == 50
    assert row.text(50) == "50.0"
    assert row.text(None) == ""
