"""The audit of models whose state is known, and its verdicts."""

import contextlib
import io
import math
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.metrics.audits import AUDITS, AuditKind, Value
from jaxunlearn.metrics.rows.inputs import _median_error
from jaxunlearn.metrics.verdict import AuditRow, verdict_of_rows
from jaxunlearn.nullspace import drift, second_moments

pytestmark = pytest.mark.core


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="body")(x.reshape(x.shape[0], -1))
        return nn.Dense(3, name="head")(x)


_HEAD = jnp.array([[4.0, 0, 0], [0, 4, 4], [0, -4, 4]])


def samples(seed, n=120):
    """Class 2 is class 1 with one more bright pixel."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    bright = 3 * np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    pixels = bright[labels] + rng.normal(size=(n, 3))
    return ju.Data(pixels.astype(np.float32).reshape(n, 1, 1, 3), labels)


def model(sees=1.0, bias=0.0, tilt=1.0):
    """Sees class 2's pixel by so much, and has a bias against it."""
    body = jnp.diag(jnp.array([1.0, tilt, sees]))
    params = {
        "body": {"kernel": body, "bias": jnp.zeros(3)},
        "head": {"kernel": _HEAD, "bias": jnp.array([0.0, 0, bias - 6])},
    }
    return ju.freeze(Net(), {"params": params})


TRAIN, TEST = samples(0), samples(1)
ORIGINAL = model()
# Blind to the pixel that tells the class.
RETRAINED = [model(0.0, -9.0), model(0.0, -9.0, 1.1)]
WHICH = ("accuracy", "distribution", "probe", "class-mean", "prototype", "neighbour")


def audit(classifier, which=WHICH, **options):
    given = {
        "original": ORIGINAL,
        "retrained": RETRAINED,
        "train": TRAIN,
        "test": TEST,
        "forget_classes": [2],
        "key": jax.random.key(0),
        "which": which,
        **options,
    }
    return ju.audit(classifier, **given)


def test_the_original_has_not_forgotten():
    assert audit(ORIGINAL).verdict == "not forgotten"


def test_a_masked_head_forgets_at_the_output_alone():
    result = audit(model(bias=-30.0))
    assert result["accuracy/forgotten"].unlearned == 0
    assert result.verdict == "output-level only"
    assert result["probe"].within is False
    assert result["prototype"].unlearned > result["prototype"].retrained[0] + 20


def test_a_retrained_model_is_within_its_noise():
    result = audit(RETRAINED[0])
    assert result.verdict == "within the noise of retraining"
    assert result.table().startswith("within the noise of retraining\n")


def test_the_rarest_retained_class_is_that_of_the_training_data():
    kept = np.flatnonzero((TRAIN.labels != 0) | (np.arange(len(TRAIN)) < 30))
    seen = model(tilt=0.1)
    for train, classes in ((TRAIN.take(kept), [0]), (TRAIN, [0, 1])):
        row = audit(seen, ["rarest"], train=train)["rarest"]
        right = np.asarray(seen(TEST.images)).argmax(axis=1) == TEST.labels
        each = [100 * right[TEST.labels == c].mean() for c in classes]
        assert row.unlearned == pytest.approx(np.mean(each))


@pytest.mark.long
def test_a_probe_below_retraining_is_too_far():
    blind = model(0.0, -9.0)
    seeing = [model(0.7, -30.0), model(0.7, -31.0)]
    assert audit(blind, retrained=seeing).verdict == "over-forgotten"


@pytest.mark.long
def test_rows_are_those_of_the_single_measures():
    unlearned = model(0.5, -3.0)
    result = audit(unlearned)
    expected = ju.evaluate(unlearned, TEST, [2])
    assert result["accuracy/forgotten"].unlearned == pytest.approx(expected.forgotten)
    assert result["accuracy/retained"].unlearned == pytest.approx(expected.retained)
    row = result["probe"]
    assert row.gap == pytest.approx(row.unlearned - np.mean(row.retrained))
    mean = np.mean(row.retrained) / 100
    binomial = 200 * math.sqrt(mean * (1 - mean) / 40)
    assert row.floor == pytest.approx(max(np.ptp(row.retrained), binomial))
    assert row.within == (abs(row.gap) <= row.floor)


@pytest.mark.long
def test_relearning_of_every_model_and_nothing_is_changed():
    masked = model(bias=-30.0)
    before = jax.tree.map(np.array, masked.params)
    result = audit(masked, ("relearn", "retain-relearn", "cka", "distance"))
    # With a neutral head in place of the masked one it is the original.
    assert result["relearn"].unlearned == result["relearn"].original
    assert result["retain-relearn"].censored[0]
    assert result["cka/original"].unlearned == pytest.approx(1, abs=1e-5)
    assert result["distance"].original == 0
    jax.tree.map(np.testing.assert_array_equal, before, masked.params)


@pytest.mark.long
def test_a_masked_head_is_near_its_original_by_every_measure_of_weights_and_inputs():
    masked = model(bias=-30.0)
    which = ("knn", "svc", "entropy-attack", "loss-attack", "over-unlearning")
    result = audit(masked, (*which, "recovery", "drift", "barrier"))
    assert result["knn"].unlearned == result["knn"].original
    assert result["svc"].unlearned > result["svc"].original
    assert result["entropy-attack"].unlearned <= 1
    # A step of .03 in pixels that span ten reaches no boundary: said, and not 0.
    assert math.isnan(result["over-unlearning"].unlearned)
    # Only the bias has moved, which is no weight: nothing drifts.
    retained = TRAIN.images[TRAIN.labels != 2]
    moments = second_moments(ORIGINAL, retained)
    for name in ("body", "head"):
        assert result[f"drift/{name}"].unlearned == 0
        (other,) = RETRAINED[1:]
        expected = drift(moments, ORIGINAL.params, other.params)[name]["kernel"]
        row = result[f"drift/{name}"]
        assert row.retrained[1] == pytest.approx(float(expected), rel=1e-5)
    layers = [result[f"drift/{name}"].retrained[1] for name in ("body", "head")]
    whole = result["drift"].retrained[1]
    assert whole == pytest.approx(np.sqrt(np.mean(np.square(layers))))
    # The loss of a linear network is convex in its head.
    assert result["barrier/retained"].unlearned == 0
    radius = result["recovery/forgotten"]
    assert radius.original < radius.unlearned
    retained = result["recovery/retained"]
    assert retained.unlearned == pytest.approx(retained.original, rel=0.1)
    ratio = result["recovery/ratio"].unlearned
    assert ratio == pytest.approx(radius.unlearned / retained.unlearned)


def test_the_error_of_a_median_is_that_of_its_order_statistics():
    radii = np.append(np.random.default_rng(0).permutation(np.arange(1.0, 100)), np.inf)
    # Ranks 40 to 60 of a hundred.
    assert _median_error(radii, 100.0) == 10
    draws = np.random.default_rng(1).exponential(size=(300, 64))
    reach = [_median_error(d, np.inf) for d in draws]
    spread = np.median(draws, axis=1).std()
    assert np.mean(reach) == pytest.approx(2 * spread, rel=0.25)


@pytest.mark.long
def test_one_retrained_model_gives_no_floor_of_seeds():
    result = audit(model(bias=-30.0), retrained=RETRAINED[0])
    assert all(row.within is None for row in result.rows)


@pytest.mark.long
def test_forgotten_samples_have_audits_of_their_own():
    forget = ju.Data(TRAIN.images[:10], TRAIN.labels[:10])
    result = audit(ORIGINAL, None, forget_classes=(), forget=forget)
    right = np.asarray(ORIGINAL(forget.images)).argmax(axis=1) == forget.labels
    assert result["accuracy/samples"].unlearned == pytest.approx(100 * right.mean())
    # As a new user would: without naming any.
    names = {row.name.split("/")[0] for row in result.rows}
    assert names == {"accuracy", "distribution", "relearn", "membership"}
    expected = ju.metrics.js_divergence(
        *(jax.nn.softmax(m(forget.images)) for m in (ORIGINAL, RETRAINED[0]))
    )
    alone = {"forget_classes": (), "forget": forget, "retrained": RETRAINED[0]}
    one = audit(ORIGINAL, ["distribution"], **alone)
    js = one["distribution/js-samples"].unlearned
    assert js == pytest.approx(float(expected), rel=1e-5)
    more = ("svc", "loss-attack", "retain-relearn", "drift", "barrier", "distance")
    more += ("loss-change",)
    result = audit(ORIGINAL, more, forget_classes=(), forget=forget)
    assert result["barrier/samples"].unlearned == result["drift/body"].unlearned == 0
    change = result["loss-change"]
    assert change.unlearned == 0 != change.retrained[0]
    # It knows them still; no minibatch is needed but the one that is always taken.
    assert result["retain-relearn"].unlearned == 1
    strangers = ju.Data(TEST.images[:4], TEST.labels[:4])
    with pytest.raises(ValueError, match="of which train lacks 4"):
        audit(ORIGINAL, None, forget_classes=(), forget=strangers)
    with pytest.raises(ValueError, match="'probe' asks what is left of whole classes"):
        audit(ORIGINAL, ["probe"], forget_classes=(), forget=forget)
    with pytest.raises(ValueError, match="give them as forget="):
        audit(ORIGINAL, None, forget_classes=())


def test_a_new_audit_is_a_function_and_a_row(monkeypatch):
    def largest(model, original, retrained, samples):
        return {"": Value(float(model.logits.max()))}

    monkeypatch.setitem(AUDITS, "largest", AuditKind("largest logit", largest))
    assert "largest" in audit(ORIGINAL, ["largest"]).table()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"which": ["prob"]}, "which must be one of 'accuracy'"),
        ({"retrained": []}, "retrained is empty"),
        ({"forget_classes": [3]}, "class 3, which does not exist"),
    ],
)
def test_wrong_arguments_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        audit(ORIGINAL, **options)


def test_an_unknown_row_is_named():
    result = ju.Audit((), "not forgotten", (2,))
    with pytest.raises(KeyError, match="no row 'probe'"):
        result["probe"]


@pytest.mark.long
def test_the_page_on_audits_runs():
    page = (Path(__file__).parents[2] / "docs" / "audits.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "audits.md", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert "prototype" in printed.getvalue()
    lines = page.split("| audit |")[1].split("\n\n")[0].splitlines()[2:]
    heads = [line.split("|")[1] for line in lines]
    named = {n: "*" in head for head in heads for n in re.findall(r"`([a-z-]+)`", head)}
    assert named == {name: kind.samplewise for name, kind in AUDITS.items()}


def test_a_model_that_lost_its_retained_classes_is_not_within_the_noise():
    def row(name, unlearned, original, retrained):
        gap = unlearned - retrained
        given = unlearned, original, (retrained, retrained), gap, 2.0, abs(gap) <= 2
        return AuditRow(name, *given, (False,) * 4, 0.0)

    rows = [
        row("accuracy/forgotten", 0.0, 90.0, 0.0),
        row("accuracy/retained", 85.0, 92.0, 92.0),
        row("probe", 50.0, 70.0, 51.0),
    ]
    named = {one.name: one for one in rows}
    assert verdict_of_rows(named) == "retained accuracy lost"
    # Outside the floor, and yet all but forgotten.
    named["accuracy/forgotten"] = row("accuracy/forgotten", 4.4, 90.0, 0.0)
    assert verdict_of_rows(named) == "retained accuracy lost"
    named["accuracy/forgotten"] = row("accuracy/forgotten", 4.6, 90.0, 0.0)
    assert verdict_of_rows(named) == "not forgotten"
    named["accuracy/forgotten"] = row("accuracy/forgotten", 0.0, 90.0, 0.0)
    named["accuracy/retained"] = row("accuracy/retained", 95.0, 92.0, 92.0)
    assert verdict_of_rows(named) == "within the noise of retraining"
