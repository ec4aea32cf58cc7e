"""Measurements of studies, on a linear classifier whose subspaces are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.studies.given import Given, stratified
from jaxunlearn.studies.poisoned import likely_victim, marked, perturbed, poisoned
from jaxunlearn.studies.request_cost import request_cost
from jaxunlearn.studies.sample_size import sample_size

RNG = np.random.default_rng(5)
CENTRES = np.eye(4, 12) * 3 + 0.5


def data(count):
    """Four clusters in twelve pixels, in order of their classes."""
    labels = np.repeat(np.arange(4), count)
    pixels = CENTRES[labels] + 0.3 * RNG.normal(size=(4 * count, 12))
    return ju.Data(pixels.reshape(-1, 3, 4, 1).astype(np.float32), labels)


def logits(params, state, images):
    return images.reshape(images.shape[0], 12) @ params["kernel"]


TRAIN, VALIDATION, TEST = data(12), data(5), data(10)
ORIGINAL = ju.freeze(ju.Function(logits, {"kernel": jnp.float32(CENTRES.T - 0.5)}))
UNSC = ju.UNSC(subspace="pooled", energy=0.9, learning_rate=0.3, steps=20)


def given(**methods):
    return Given(
        *(ORIGINAL, TRAIN, VALIDATION, TEST, (3,), 4),
        methods={name: (method, ()) for name, method in methods.items()},
        key=jax.random.key(0),
        training_seconds=7.0,
        training_samples=480,
    )


def test_a_stratified_draw_has_of_every_class_as_many():
    labels = np.array([2, 0, 0, 1, 1, 1, 0, 0, 2, 1])
    chosen = stratified(labels, 7, seed=1)
    assert (np.diff(chosen) > 0).all()
    # One more for the first class; of the last there are two only.
    assert np.bincount(labels[chosen]).tolist() == [3, 2, 2]
    assert stratified(labels, 99, seed=1).size == 10
    draws = {tuple(stratified(labels, 3, seed)) for seed in range(20)}
    assert len(draws) > 5


@pytest.mark.long
def test_subspaces_of_few_images_are_held_beside_that_of_all():
    rows = sample_size(
        given(unsc=UNSC), sizes=[3], draws=2, copies=1, padding=1, energy=0.97
    )
    assert list(rows) == ["unsc, 3", "unsc, 3, cropped", "unsc, all"]
    retain = TRAIN.take(np.flatnonzero(TRAIN.labels != 3))

    def basis(images):
        _, s, vt = np.linalg.svd(images.reshape(len(images), 12).astype(float))
        shares = np.cumsum(s**2) / (s**2).sum()
        return vt[: 1 + np.flatnonzero(shares >= 0.97)[0]].T

    whole, inputs = basis(retain.images), retain.images.reshape(-1, 12).astype(float)
    few = [basis(retain.images[stratified(retain.labels, 3, s)]) for s in (0, 1)]
    found = rows["unsc, 3"]
    assert found["rank"] == np.mean([U.shape[1] for U in few])
    energy = [((inputs @ U) ** 2).sum() / (inputs**2).sum() for U in few]
    assert found["captured_energy"] == pytest.approx(np.mean(energy), abs=1e-5)
    overlap = [
        ((U.T @ whole) ** 2).sum() / min(U.shape[1], whole.shape[1]) for U in few
    ]
    assert found["overlap"] == pytest.approx(np.mean(overlap), abs=1e-5)
    assert rows["unsc, all"]["overlap"] == pytest.approx(1, abs=1e-5)
    (forget, keep), key = given().parts, given().key
    task = ju.Task(forget, keep, [3], num_classes=4)
    end = ju.evaluate(UNSC(ORIGINAL, task, key=key).classifier, TEST, [3])
    assert rows["unsc, all"]["accuracy/retained"] == end.retained
    assert rows["unsc, all"]["accuracy/forgotten"] == end.forgotten


@pytest.mark.long
def test_what_requests_read_and_leave_is_that_of_every_way():
    rows = request_cost(given(unsc=UNSC), counts=[1, 3])
    read = {name: row["read"] for name, row in rows.items()}
    # One pass of the retained samples for every request; a ledger reads all once.
    assert read["unsc, one by one, 3"] == 36 + 24 + 12
    assert read["unsc, ledger, 3"] == read["unsc, ledger, 1"] == 48
    assert read["unsc, together, 3"] == 12
    assert read["retraining, one by one, 3"] == 3 * 480
    assert rows["retraining, together, 3"]["seconds_each"] == pytest.approx(7 / 3)
    # The inputs of a single layer do not change: kept moments are those of now.
    one, kept = (rows[f"unsc, {way}, 3"] for way in ("one by one", "ledger"))
    for name in ("accuracy/retained", "accuracy/forgotten"):
        assert one[name] == kept[name]
    assert all(row["seconds"] > 0 for row in rows.values())
    with pytest.raises(ValueError, match="counts must be 1 to 3"):
        request_cost(given(), counts=[4])


def test_the_victim_is_the_likeliest_retained_class():
    forget = TRAIN.take(np.flatnonzero(TRAIN.labels == 3))
    z = forget.images.reshape(-1, 12) @ (CENTRES.T - 0.5)
    assert (
        likely_victim(ORIGINAL, forget, (3,))
        == np.bincount(z[:, :3].argmax(axis=1)).argmax()
    )


def test_perturbed_images_stay_near_and_look_like_the_victim():
    with_pixels = ORIGINAL.replace(preprocess=ju.Preprocess((0.0,), (1.0,)))
    images = RNG.integers(0, 256, size=(5, 3, 4, 1)).astype(np.uint8)
    before = ju.Data(images, [3] * 5)
    after = perturbed(with_pixels, before, 1, 8 / 255, steps=4)
    assert after.images.dtype == np.uint8
    change = after.images.astype(int) - images
    assert np.abs(change).max() == 8
    gap = [
        np.asarray(with_pixels(x))[:, 1] - np.asarray(with_pixels(x))[:, 2]
        for x in (images, after.images)
    ]
    assert (gap[1] > gap[0]).all()


def test_a_square_is_white_and_nothing_else_is_touched():
    images = RNG.integers(0, 200, size=(2, 3, 4, 1)).astype(np.uint8)
    shown = marked(images, 2)
    assert (shown[:, 1:, 2:] == 255).all()
    shown[:, 1:, 2:] = images[:, 1:, 2:]
    np.testing.assert_array_equal(shown, images)
    assert marked(images / np.float32(255), 1)[0, 2, 3, 0] == 1


@pytest.mark.long
def test_a_request_that_names_the_victims_images_costs_the_victim():
    own = ju.Unprojected(learning_rate=0.1, steps=20)
    methods = {"own": own, "random": dataclasses.replace(own, targets="random")}
    rows = poisoned(given(**methods), share=1.0)
    kinds = "honest", "perturbed", "steered", "backdoored"
    assert [*rows] == ["original", *(f"{m}, {k}" for k in kinds for m in methods)]
    honest, steered = rows["random, honest"], rows["random, steered"]
    assert honest["accuracy/forgotten"] == 0
    assert honest["victim"] == rows["original"]["victim"] == 100
    assert steered["victim"] < 100
    assert rows["original"]["drift"] == 0 < honest["drift"] < steered["drift"]
    # Labels that the original's own outputs give are the victim's for its images.
    assert rows["own, steered"]["victim"] == 100
