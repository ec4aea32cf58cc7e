"""Audits that perturb images: how near the forgotten class is, and what lies there."""

import math

import numpy as np

from jaxunlearn.metrics.boundary import divergence_at
from jaxunlearn.metrics.recovery import recovery_radius
from jaxunlearn.metrics.rows.values import Value, Values
from jaxunlearn.metrics.subject import NEIGHBOURHOOD

# Test samples of either kind whose radii are searched.
RECOVERED = 64


def over_unlearning(model, original, retrained, samples) -> Values:
    """Divergence from the masked original, near its decision boundary."""
    del retrained, samples
    found = divergence_at(original.boundary, model.classifier, protocol=NEIGHBOURHOOD)
    return {"": Value(found.value, error=found.error)}


def recovery(model, original, retrained, samples) -> Values:
    """Median radii of recovered and of retained samples, and their ratio."""
    del original, retrained
    sets = (_some(samples.test, r) for r in (samples.forgotten, samples.retained))
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


def _some(data, rows):
    """At most so many, evenly spread."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), RECOVERED)).round()
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
