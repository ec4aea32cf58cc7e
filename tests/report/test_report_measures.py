"""What is computed for the page, beside slow twins."""

import dataclasses

import numpy as np
import pytest
import reported

import jaxunlearn as ju
from jaxunlearn.report.attacks import membership, relearning, roc
from jaxunlearn.report.contents import MissingError, SampleSets
from jaxunlearn.report.limits import Limits
from jaxunlearn.report.maps import feature_maps
from jaxunlearn.report.measures import measure
from jaxunlearn.report.outputs import evaluations, part
from jaxunlearn.report.sections.accuracies import _told
from jaxunlearn.report.sections.proxies import visible
from jaxunlearn.report.sections.representation import _neighbours
from jaxunlearn.report.spectra import statistics

LIMITS = Limits(points=40, map="pca")


def rows(data):
    return np.asarray(data.images, np.float64).reshape(len(data), -1)


def test_spectra_and_drifts_are_those_of_explicit_rows():
    found = statistics(reported.contents(), LIMITS)
    assert found.layers == ["hidden", "head"]
    assert found.samples == len(reported.RETAIN)
    known = reported.classifiers()
    before = {n: np.asarray(w, np.float64) for n, w in known["original"].params.items()}
    inputs = {"hidden": rows(reported.RETAIN)}
    inputs["head"] = np.maximum(inputs["hidden"] @ before["hidden"], 0)
    for name, x in inputs.items():
        values = np.linalg.svd(x, compute_uv=False) ** 2
        shares = found.spectra[name]
        assert shares.sum() == pytest.approx(1)
        some = values / values.sum()
        np.testing.assert_allclose(shares[: len(some)], some, atol=2e-6)
        for model in ("masked", "retrained"):
            w = np.asarray(known[model].params[name], np.float64)
            moved = np.linalg.norm(x @ (w - before[name]))
            moved /= np.linalg.norm(x @ before[name])
            assert found.drifts[model][name] == pytest.approx(moved, abs=2e-3)


def test_an_area_is_the_chance_of_the_right_order():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 30), rng.integers(0, 7, 40)
    found = roc(members.astype(float), others.astype(float))
    pairs = members[:, None] - others[None]
    assert found.auc == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert (found.true[0], found.true[-1]) == (0, 1)


@pytest.mark.long
def test_membership_and_relearning_are_those_of_the_audit():
    contents = reported.contents()
    models = dict(reported.classifiers())
    audited = ju.audit(
        models.pop("masked"),
        original=models.pop("original"),
        retrained=list(models.values()),
        train=reported.TRAIN,
        test=reported.TEST,
        forget_classes=[reported.FORGOTTEN],
        key=contents.key,
        which=("membership", "relearn"),
    )
    found = membership(contents, LIMITS)
    aucs = [found.curves[name].auc for name in ("masked", "original", "retrained")]
    assert (found.members, found.others) == (20, 20)
    row = audited["membership"]
    np.testing.assert_allclose(aucs, [row.unlearned, row.original, row.retrained[0]])
    taught = relearning(contents, LIMITS)
    row = audited["relearn"]
    for name, steps in (("masked", row.unlearned), ("retrained-2", row.retrained[1])):
        curve = taught.curves[name].curve
        assert len(curve) == min(steps, taught.cap)
        assert max(curve[:-1], default=0) < taught.target


def test_maps_are_of_the_same_samples_and_keep_distances_by_pca():
    found = feature_maps(reported.contents(), LIMITS)
    assert found.gone.sum() == 10  # a quarter of the points
    assert (found.labels[found.gone] == reported.FORGOTTEN).all()
    assert (found.labels[~found.gone] != reported.FORGOTTEN).all()
    points = found.points["original"]
    assert points.shape == (40, 2)
    centred = points - points.mean(axis=0)
    np.testing.assert_allclose(centred, points, atol=1e-9)
    first, second = (points**2).sum(axis=0)
    assert first >= second
    assert abs((points[:, 0] * points[:, 1]).sum()) < 1e-9 * first
    assert (found.taken["masked"] != reported.FORGOTTEN).all()


def test_neighbours_of_forgotten_points_are_counted():
    rng = np.random.default_rng(2)
    points, gone = rng.normal(size=(30, 2)), rng.uniform(size=30) < 0.4
    shares = []
    for i in np.flatnonzero(gone):
        others = [j for j in range(30) if j != i]
        others.sort(key=lambda j, i=i: np.linalg.norm(points[i] - points[j]))
        shares.append(np.mean([gone[j] for j in others[:5]]))
    assert _neighbours(points, gone) == pytest.approx(100 * np.mean(shares))


def test_records_stand_in_for_classifiers():
    test = {"per_class": [50.0, None], "confusion": [[1, 1], [0, 0]]}
    contents = reported.contents()
    models = [dataclasses.replace(contents.models[0], record={"test": test})]
    found = evaluations(dataclasses.replace(contents, models=models), LIMITS)
    assert found["original"].confusion.tolist() == [[1, 1], [0, 0]]
    assert np.isnan(found["original"].per_class[1])


def test_where_forgotten_samples_go_is_told_whole_and_mistakes_by_their_number():
    confusion = np.array([[5, 1, 0], [2, 3, 4], [3, 0, 6]])
    assert _told(confusion, (1,)) == [(1, 0), (1, 1), (1, 2), (2, 0), (0, 1)]


def test_few_samples_are_a_sentence_that_says_how_to_get_more():
    contents = reported.contents()
    data = vars(contents.samples)
    bare = SampleSets(**data | {"test": reported.RETAIN})
    found = measure(dataclasses.replace(contents, samples=bare), LIMITS)
    for name, flag in (("maps", "--points"), ("membership", "--samples")):
        with pytest.raises(MissingError, match=flag):
            found[name]


def test_a_part_is_of_the_samples_themselves():
    chosen = part(reported.TRAIN, 7)
    assert len(chosen) == 7
    assert chosen.class_names == reported.NAMES
    whole = {image.tobytes() for image in np.asarray(reported.TRAIN.images)}
    assert {image.tobytes() for image in chosen.images} <= whole


def test_proxies_of_any_range_become_bytes():
    images = np.linspace(-1, 3, 8).reshape(1, 2, 4, 1)
    assert visible(images).ravel().tolist() == [0, 36, 73, 109, 146, 182, 219, 255]
    assert visible(np.full((1, 1, 1, 3), 0.5)).tolist() == [[[[128] * 3]]]
