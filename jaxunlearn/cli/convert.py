"""`jaxunlearn convert`: PyTorch's weights as a classifier's file, and back."""

import dataclasses
from typing import Annotated

from jaxunlearn.cli.console import consoles
from jaxunlearn.cli.places import Lock, check_reachable
from jaxunlearn.cli.saved import SavedSettings
from jaxunlearn.cli.settings import File
from jaxunlearn.models.files import read_card, save_classifier
from jaxunlearn.models.torch_files import save_torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(SavedSettings):
    """Turn PyTorch's weights into a file that the commands take, or back.

    Attributes:
      checkpoint: PyTorch's weights of a --model; or a .safetensors file of a training
        or a run, which becomes a state_dict.
      out: the file to write: .safetensors where weights come from PyTorch; else .pt,
        .pth or .safetensors, which needs no PyTorch.
      naming: of the parameters in a state_dict, such as torchvision or unsc; by default
        the network's first.
      overwrite: replace a file that is there.
    """

    examples = (
        "jaxunlearn convert --checkpoint a.pt --model vit --out b.safetensors",
        "jaxunlearn convert --checkpoint a.safetensors --out resnet18.pt",
    )
    first = (
        *("checkpoint", "out", "model", "options", "dataset", "data_dir", "size"),
        *("image_shape", "mean", "std", "naming", "overwrite"),
    )

    checkpoint: File
    out: File
    naming: Annotated[str | None, "NAME"] = None
    overwrite: bool = False

    def check(self) -> None:
        """Refuse a file that cannot be written."""
        super().check()
        check_reachable(self.out)
        if self.out.is_dir() or (self.out.exists() and not self.overwrite):
            msg = f"{self.out} is there: choose another file, or replace it with --overwrite."  # noqa: E501
            raise ValueError(msg)

    def run(self) -> None:
        """Read, and write in the other form."""
        self.check()
        outward = read_card(self.checkpoint) is not None
        suffixes = (".pt", ".pth", ".safetensors") if outward else (".safetensors",)
        if self.out.suffix not in suffixes:
            msg = f"--out must end in {' or '.join(suffixes)}; it is {self.out}."
            raise ValueError(msg)
        if self.naming is not None and not outward:
            msg = f"--naming is for a state_dict to be written, and {self.checkpoint} is one to be read."  # noqa: E501
            raise ValueError(msg)
        _, classifier, card = self.read(self.checkpoint)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        results, pixels = consoles()[0], classifier.preprocess
        with Lock(self.out).held():
            if outward:
                shape = card.image_shape
                save_torch(self.out, classifier, naming=self.naming, image_shape=shape)
            else:
                save_classifier(self.out, classifier, card)
        if outward and pixels is not None:
            results.print(
                "It does not say that pixels in [0, 1] are standardised with mean "
                f"{pixels.mean} and standard deviation {pixels.std}."
            )
        results.print(f"Written to {self.out}.")
