"""What a plan is asked, and what it answers."""

import dataclasses

from jaxunlearn.checks import check_count
from jaxunlearn.nullspace.rank_rules import Rule


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """A weight whose inputs are protected.

    Attributes:
      path: of the leaf.
      kind: "dense", "conv" or "einsum".
      g, d, out: groups, fan-in and fan-out.
      rows: rows that one image brings to each group.
      rank: how many directions will be protected, or None where the data decide.
      moment_bytes: of the second moment of one set of images.
      patch_flops: `2 g rows d^2`: operations for each image, if its rows were written
        out and multiplied.
    """

    path: str
    kind: str
    g: int
    d: int
    out: int
    rows: int
    rank: int | None
    moment_bytes: int
    patch_flops: float


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage of a request.

    Attributes:
      name: "inversion", "statistics", "subspaces" or "steps".
      runs: how often its program runs.
      flops: floating-point operations of products, over all runs.
      bytes: memory while it runs: arguments, results and what lies between.
      seconds: predicted, compilation left out, or None without calibration.
    """

    name: str
    runs: int
    flops: float
    bytes: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of a request, as plain values."""

    layers: tuple[LayerPlan, ...]
    stages: tuple[StagePlan, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """How much there is to do; a count of zero leaves its stage out.

    Attributes:
      images: that second moments are taken of.
      batch_size: images of a batch of moments.
      sets: how many sets of images have moments and subspaces of their own, as the
        retained classes in UNSC.
      rule: how many directions are protected.
      inverted: images that are inverted.
      inversion_steps: for each batch of them.
      inversion_batch_size: images optimised together.
      steps: unlearning steps.
      step_batch_size: images of each.
    """

    images: int
    batch_size: int = 256
    sets: int = 1
    rule: Rule = Rule("energy", 0.99)
    inverted: int = 0
    inversion_steps: int = 500
    inversion_batch_size: int = 256
    steps: int = 100
    step_batch_size: int = 256

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("images", "inverted", "steps") and value == 0:
                continue
            if field.name != "rule":
                check_count(field.name, value)
