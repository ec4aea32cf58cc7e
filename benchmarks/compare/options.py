"""What `python -m benchmarks.compare` takes."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

Stage = Literal[
    "statistics",
    "subspaces",
    "inversion",
    "unlearning",
    "unprojected",
    "projection",
    "training",
    "unsc",
    "covarnav",
]


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare each stage with PyTorch, on the same weights, images and order.

    Args:
      model: which network.
      width: of the network; by default .5 of All-CNN and 64 channels of ResNet-18.
      batch: images in a step, and at a time in the statistics.
      images: retained images of each of the nine classes, and images to forget.
      steps: of inversion, unlearning and training in one timed call.
      request_steps: unlearning steps of a whole request.
      side: of the random images, in pixels.
      repeats: timed calls of each stage and side, after a first one.
      request_repeats: likewise, of whole requests.
      stages: what is timed; "unprojected" are unlearning steps without projection,
        "projection" the projection of one update by itself, "unsc" and "covarnav" whole
        requests.
      agreement: check beforehand that both sides compute the same.
      released: also time the released procedure of UNSC on its first two classes and
        its last one (All-CNN; asks for 256 images; takes long).
      compile: also time PyTorch compiled.
      channels_last: PyTorch's networks and images are laid out so.
      device: where; "auto" is a GPU where there is one.
      data_dir: of CIFAR-10 as tensorflow-datasets prepares it; by default images are
        random, smooth, and of CIFAR-10's shape.
      results: a file to append to; by default in benchmarks/results.
    """

    model: Literal["allcnn", "resnet18"] = "allcnn"
    width: float | None = None
    batch: int = 256
    images: int = 128
    steps: int = 2
    request_steps: int = 4
    side: int = 32
    repeats: int = 3
    request_repeats: int = 1
    stages: tuple[Stage, ...] = get_args(Stage)
    agreement: bool = True
    released: bool = False
    compile: bool = False
    channels_last: bool = False
    device: Literal["auto", "cpu", "gpu"] = "auto"
    data_dir: Path | None = None
    results: Path | None = None

    def __post_init__(self):
        sizes = ("batch", "images", "steps", "request_steps", "repeats")
        for name in (*sizes, "request_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more: {getattr(self, name)}.")
        if self.data_dir is not None and self.side != 32:
            raise ValueError(f"CIFAR-10 has a side of 32, not {self.side}.")
        if self.released and self.model != "allcnn":
            raise ValueError("The released procedure is followed for --model allcnn.")
        if self.released and self.images < 256:
            raise ValueError(
                f"The released procedure takes 256 images of a class: --images is "
                f"{self.images}."
            )

    @property
    def model_options(self) -> dict[str, float]:
        """Options of `models.create`."""
        if self.width is None:
            return {}
        return {"width": int(self.width) if self.model == "resnet18" else self.width}
