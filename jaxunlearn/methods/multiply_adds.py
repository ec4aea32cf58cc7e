"""What a network costs, counted on paper: multiply-adds of its weights.

Wall time depends on the machine, its load and what is compiled; this does not.
"""

from collections.abc import Iterable
from typing import Any

from jaxunlearn.capture.layers import layer_table
from jaxunlearn.classifier.classifier import Classifier


class Costs:
    """Multiply-adds of the weights that have inputs, for one image.

        forward = sum_w g d o r,   step = 3 forward

    with `r` rows of fan-in `d` that an image brings to each of `g` groups of fan-out
    `o`. A step counts the forward pass, and as much again for the gradients of inputs
    and of weights. Biases, normalisation and activations are not counted, nor weights
    whose input is not known.
    """

    def __init__(self, classifier: Classifier, images: Any):
        table = layer_table(classifier, images[:1])
        self._layers = {r.path: r for r in table if r.kind is not None}

    def forward(self, weights: Iterable[str] | None = None) -> float:
        """Of all weights, or of these; other parameters among them count nothing."""
        counted = self._layers if weights is None else {*weights} & self._layers.keys()
        records = (self._layers[name] for name in counted)
        return float(sum(r.g * r.d * r.out * r.rows for r in records))

    def step(self, weights: Iterable[str] | None = None) -> float:
        """Of a training step, for one of its images."""
        return 3 * self.forward(weights)

    def moments(self) -> float:
        """Of an image in `second_moments`: forward, and the products of its rows."""
        return self.forward() + sum(
            r.g * r.d**2 * r.rows for r in self._layers.values()
        )

    def output_moments(self) -> float:
        """Of an image in `output_moments`: a step, and the products of its rows."""
        return self.step() + sum(r.g * r.out**2 * r.rows for r in self._layers.values())

    def decompositions(self) -> float:
        """Of the eigenvectors of every moment, about 10 d^3 each."""
        return 10.0 * sum(r.g * (r.d**3 + r.out**3) for r in self._layers.values())
