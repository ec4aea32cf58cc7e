"""Audits of other images: shifted ones, and those that an attacker has moved."""

import math

import numpy as np

from jaxunlearn.metrics.boundary import divergence_at
from jaxunlearn.metrics.perturbation import as_floats, pixel_bounds
from jaxunlearn.metrics.recovery import recovery_radius
from jaxunlearn.metrics.robustness import EPSILON, fgsm, pgd
from jaxunlearn.metrics.rows.values import Value, Values, class_mean, mean
from jaxunlearn.metrics.subject import NEIGHBOURHOOD

# Test samples of either kind whose radii are searched.
RECOVERED = 64
# Test samples of either kind that are attacked.
ATTACKED = 500


def over_unlearning(model, original, retrained, samples) -> Values:
    """Divergence from the masked original, near its decision boundary."""
    del retrained, samples
    found = divergence_at(original.boundary, model.classifier, protocol=NEIGHBOURHOOD)
    return {"": Value(found.value, error=found.error)}


def recovery(model, original, retrained, samples) -> Values:
    """Median radii of recovered and of retained samples, and their ratio."""
    del original, retrained
    kinds = samples.forgotten, samples.retained
    sets = (_some(samples.test, rows, RECOVERED) for rows in kinds)
    found = recovery_radius(model.classifier, *sets)
    censored = found.censored
    errors = [
        _median_error(radii, found.largest)
        for radii in (found.forgotten_radii, found.retained_radii)
    ]
    return {
        "forgotten": Value(found.forgotten, error=errors[0], censored=censored[0]),
        "retained": Value(found.retained, error=errors[1], censored=censored[1]),
        "ratio": Value(found.selectivity, censored=censored[0]),
    }


def shifted(model, original, retrained, samples) -> Values:
    """Accuracy in percent on shifted test images, by shift and the mean over them."""
    del original, retrained
    truth = samples.test.labels
    right = {n: z.argmax(axis=1) == truth for n, z in model.shifted_logits.items()}
    means, parts = {}, {}
    for kind, rows in _kinds(samples).items():
        each = {name: class_mean(r[rows], truth[rows]) for name, r in right.items()}
        # The shifts share their samples, which are counted once for the noise.
        means[kind] = Value(mean(each.values()), len(rows))
        parts |= {f"{n}-{kind}": Value(v, len(rows)) for n, v in each.items()}
    return means | parts


def attacked(model, original, retrained, samples) -> Values:
    """Accuracy in percent under attack, and what share of a class it brings back."""
    del original, retrained
    sets = {k: _some(samples.test, r, ATTACKED) for k, r in _kinds(samples).items()}
    every = np.concatenate([np.asarray(data.images) for data in sets.values()])
    bounds = pixel_bounds(model.classifier, as_floats(model.classifier, every), None)
    how = {"epsilon": EPSILON * (bounds[1] - bounds[0]), "bounds": bounds}

    def value(reached, data):
        return Value(class_mean(reached, data.labels), len(data))

    values = {}
    if data := sets.get("retained"):
        for name, attack in (("fgsm", fgsm), ("pgd", pgd)):
            kept = ~attack(model.classifier, data, **how).reached
            values[f"{name}-retained"] = value(kept, data)
    if data := sets.get("forgotten"):
        back = pgd(model.classifier, data, goal="recover", **how).reached
        values["forgotten"] = value(back, data)
    return values


def _kinds(samples):
    """Places of the test samples of either kind, where there are any."""
    kinds = {"retained": samples.retained, "forgotten": samples.forgotten}
    return {name: rows for name, rows in kinds.items() if rows.size}


def _some(data, rows, most):
    """At most so many, evenly spread."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), most)).round()
    return data.take(rows[places.astype(int)])


def _median_error(radii, largest):
    """Half of the interval of order statistics that holds the median 95 times of 100.

    Ranks from `n / 2 - sqrt(n)` to `n / 2 + sqrt(n)`: two binomial standard errors.
    """
    ordered, n = np.minimum(np.sort(radii), largest), len(radii)
    reach = math.sqrt(n)
    low = max(math.floor(n / 2 - reach), 0)
    high = min(math.ceil(n / 2 + reach), n - 1)
    return float(ordered[high] - ordered[low]) / 2
