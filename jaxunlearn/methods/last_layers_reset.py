"""EU-k: the last layers drawn anew and trained on retained data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.capture.layers import layer_table
from jaxunlearn.checks import check_count
from jaxunlearn.methods.baseline import Baseline, labelled, retained
from jaxunlearn.methods.random_labels import keep_where, mean_of_sets
from jaxunlearn.methods.relabel import retained_probabilities
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.layer_features import feature_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastLayersReset(Baseline):
    """Draw the last `layers` weights anew and train them alone on retained data.

    A cheap retraining, which every claim must beat: all layers below keep what they
    know, bit for bit. Weights are drawn from a truncated normal of variance 1 / fan-in,
    and their biases are 0.

    Against `ResetAndDistill`: `distil=True` has its teacher, and a step of
    `batch_size` images goes through the whole network, three times its forward pass.
    The cost of `budget` passes over `n` retained samples, a third of one for the
    teacher included, are `steps = (budget - 1 / 3) * n / batch_size`.

    Attributes:
      layers: how many of the weights that have inputs, in the order of their use.
      distil: descend on the original's probabilities, without the forgotten classes,
        instead of the labels.

    Source: EU-k of Goel et al., arXiv 2201.06640.

    >>> LastLayersReset().layers
    1
    """

    learning_rate: float = 0.1
    steps: int = 200
    layers: int = 1
    distil: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_count("layers", self.layers)

    def sets(self, classifier, task, key):
        """Retained samples, with labels or probabilities."""
        del key
        data = retained(task, self)
        if not self.distil:
            return {"retain": labelled(data)}
        outputs = jnp.asarray(logits(classifier, data.images))
        classes = task.forget_classes
        masked = retained_probabilities(outputs, classes) if classes else None
        targets = jax.nn.softmax(outputs) if masked is None else masked
        return {"retain": (data.images, np.asarray(targets))}

    def constants(self, classifier, task, key):
        """Which parameters are trained, like params."""
        del key
        layers = last_layers(classifier, task.forget.images, self.layers)
        chosen = {i for pair in layers for i in pair[:2]}
        leaves, structure = jax.tree.flatten(classifier.params)
        mask = [jnp.full(jnp.shape(x), i in chosen) for i, x in enumerate(leaves)]
        return jax.tree.unflatten(structure, mask)

    def start(self, classifier, task, key):
        """The classifier with those layers drawn anew."""
        leaves, structure = jax.tree.flatten(classifier.params)
        layers = last_layers(classifier, task.forget.images, self.layers)
        for kernel, bias, fan_in in layers:
            old, draw = leaves[kernel], jax.random.fold_in(key, kernel)
            initial = jax.nn.initializers.truncated_normal(fan_in**-0.5 / 0.8796)
            leaves[kernel] = initial(draw, old.shape, old.dtype)
            if bias is not None:
                leaves[bias] = jnp.zeros_like(leaves[bias])
        return classifier.replace(params=jax.tree.unflatten(structure, leaves))

    def objective(self):
        """The cross-entropy."""
        return mean_of_sets

    def optimizer(self, constants):
        """SGD, and then zero below the last layers."""
        return optax.chain(super().optimizer(constants), keep_where(constants))


def last_layers(classifier, images, count: int) -> list[tuple[int, int | None, int]]:
    """Of the last weights the number of their leaf, that of their bias, and fan-in.

    A bias is the leaf beside it in the parameters that is added to its outputs.

    Raises:
      ValueError: there are fewer weights, or several leaves could be a bias.
    """
    table = layer_table(classifier, images[:1])
    names = feature_layers(classifier, images)
    if count > len(names):
        msg = f"layers is {count}, and this network has {len(names)} weights that have inputs: {names}."  # noqa: E501
        raise ValueError(msg)
    number = {record.path: i for i, record in enumerate(table)}
    found = []
    for name in names[len(names) - count :]:
        weight = table[number[name]]
        beside = [
            record
            for record in table
            if record.path.rpartition("/")[0] == name.rpartition("/")[0]
            and record.kind is None
            and "as a bias" in (record.reason or "")
            and int(np.prod(record.shape)) == weight.g * weight.out
        ]
        if len(beside) > 1:
            msg = (
                f"{len(beside)} leaves beside {name} could be its bias, "
                f"{[record.path for record in beside]}: keep each weight and its bias "
                "in a container of their own."
            )
            raise ValueError(msg)
        bias = number[beside[0].path] if beside else None
        found.append((number[name], bias, weight.d))
    return found
