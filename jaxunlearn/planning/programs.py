"""The programs of a request's stages, traced and costed, never run."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxunlearn.capture.inputs import gram_shapes, layer_sums
from jaxunlearn.classifier.classifier import Classifier
from jaxunlearn.descent.cpu_convolution import in_pieces
from jaxunlearn.descent.losses import cross_entropy
from jaxunlearn.inversion import ImagePrior, inversion_terms
from jaxunlearn.nullspace.memory import tree_bytes
from jaxunlearn.nullspace.projector import Projector, project
from jaxunlearn.nullspace.rank_rules import Rule
from jaxunlearn.planning.costs import Cost, program_cost
from jaxunlearn.planning.records import Request


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage whose program has not been timed yet."""

    name: str
    runs: int
    cost: Cost
    bytes: int


def stage_programs(
    classifier: Classifier, image: Any, request: Request, compiled: bool
) -> list[Stage]:
    """The programs of inversion, statistics and steps, and what they cost.

    Args:
      classifier: of shapes.
      image: one, of which only shape and type matter.
      request: how much there is to do.
      compiled: whether to compile them, for the memory that they ask for.
    """

    def batch(size, dtype=image.dtype):
        return jax.ShapeDtypeStruct((size, *image.shape[1:]), dtype)

    def labels(size):
        return jax.ShapeDtypeStruct((size,), jnp.int32)

    found = []
    if request.inverted:
        size = min(request.inversion_batch_size, request.inverted)
        runs = math.ceil(request.inverted / size) * request.inversion_steps
        arguments = (classifier, batch(size, jnp.float32), labels(size))
        stage = _stage("inversion", runs, _image_gradient, arguments, compiled)
        # Adam's two averages, and the images that come out.
        adam = 3 * tree_bytes(arguments[1])
        found.append(dataclasses.replace(stage, bytes=stage.bytes + adam))
    if request.images:
        # As many batches for each set as it needs.
        share = math.ceil(request.images / request.sets)
        size = min(request.batch_size, share)
        masks = jax.ShapeDtypeStruct((size,), jnp.float32)
        arguments = (classifier, batch(size), masks)
        runs = request.sets * math.ceil(share / size)
        found.append(_stage("statistics", runs, layer_sums, arguments, compiled))
        # What is carried from batch to batch: sums, and their compensation.
        sums = 2 * request.sets * tree_bytes(jax.eval_shape(layer_sums, *arguments))
        found[-1] = dataclasses.replace(found[-1], bytes=found[-1].bytes + sums)
    if request.steps:
        size = request.step_batch_size
        projectors = _projectors(classifier, image, request.rule)
        arguments = (classifier, projectors, batch(size), labels(size))
        found.append(_stage("steps", request.steps, _step, arguments, compiled))
    return found


def _stage(
    name: str, runs: int, function: Callable[..., Any], arguments: Any, compiled: bool
) -> Stage:
    cost = program_cost(function, *arguments)
    held = cost.held
    if compiled:
        program = jax.jit(function).lower(*arguments).compile()
        memory = program.memory_analysis()
        # Not every backend tells.
        held = cost.held if memory is None else memory.temp_size_in_bytes
    results = tree_bytes(jax.eval_shape(function, *arguments))
    return Stage(name, runs, cost, int(held + tree_bytes(arguments) + results))


def _image_gradient(classifier: Classifier, images: Any, labels: Any) -> Any:
    def total(images):
        return inversion_terms(classifier, images, labels, ImagePrior())["total"]

    return jax.grad(total)(images)


def _step(classifier: Classifier, projectors: PyTree, images: Any, labels: Any) -> Any:
    """One projected step of SGD."""

    def loss(params):
        logits = in_pieces(Classifier.__call__)(
            classifier.replace(params=params), images
        )
        return cross_entropy(logits, labels).mean()

    leaves, structure = jax.tree.flatten(classifier.params)
    updates = jax.tree.leaves(jax.grad(loss)(classifier.params))
    moved = [
        leaf if projector is None else leaf - project(projector, update)
        for leaf, projector, update in zip(leaves, projectors, updates, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def _projectors(classifier, image, rule: Rule) -> list[Projector | None]:
    """Of each leaf, as shapes."""
    found: list[Projector | None] = []
    for gram in gram_shapes(classifier, image):
        if gram is None:
            found.append(None)
            continue
        g, d = gram.layout.groups, gram.layout.fan_in
        rank = rule.upper_bound(d)
        # No more than half: the complement takes over.
        width = min(rank, d - rank) if rank < d else d // 2
        matrix = jax.ShapeDtypeStruct((g, d, width), gram.gram.dtype)
        kept = jax.ShapeDtypeStruct((g,), jnp.bool_)
        found.append(Projector(matrix, kept, gram.layout))
    return found
