"""The side of PyTorch, as it is or compiled."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..pytorch_baseline import networks
from ..pytorch_baseline.covarnav import covarnav
from ..pytorch_baseline.inversion import Objective, invert
from ..pytorch_baseline.statistics import class_moments
from ..pytorch_baseline.subspaces import class_subspaces
from ..pytorch_baseline.training import train
from ..pytorch_baseline.unlearning import project, projected_weights, unlearn
from ..pytorch_baseline.unsc import unsc
from . import inputs as given
from .inputs import Inputs
from .options import Options
from .released_procedure import timed

# Stages that run the network alone, without hooks: what `torch.compile` is for.
COMPILED = ("inversion", "unlearning", "unprojected", "training")


class PyTorch:
    """What is timed, by stage.

    Args:
      options: of the command line.
      folder: where the library's side has written the inputs.
      cores: of the CPU.
      device: "cpu" or "cuda".
      compiled: whether networks are compiled.
    """

    def __init__(
        self,
        options: Options,
        folder: Path,
        *,
        cores: int,
        device: str,
        compiled: bool = False,
    ):
        torch.set_num_threads(cores)
        torch.manual_seed(0)
        self.options, self.folder, self.compiled = options, folder, compiled
        self.device = torch.device(device)
        self.network = self._network()
        self.original = copy.deepcopy(self.network.state_dict())
        self.inputs = Inputs.load(folder)
        self.retained = self._placed(self.inputs.retained)
        self.retained_labels = self._labels(self.inputs.retained_labels)
        self.forgotten = self._placed(self.inputs.forgotten)
        self.targets = self._labels(given.rows("targets", folder))
        self.bases = self._bases()
        # It leaves hooks on its network.
        self.objective = Objective(
            copy.deepcopy(self.network.network),
            given.MEAN,
            given.STD,
            tuple(given.PRIOR.values()),
        ).to(self.device)
        if compiled:
            self.network.compile()
            self.objective.compile()
        self.moments: Any = None

    def _network(self) -> networks.Standardised:
        make = getattr(networks, self.options.model)
        network = make(given.CLASSES, **self.options.model_options)
        with np.load(self.folder / "weights.npz") as file:
            network.load_state_dict({n: torch.from_numpy(file[n]) for n in file.files})
        network = networks.Standardised(network, given.MEAN, given.STD)
        if self.options.channels_last:
            network = network.to(memory_format=torch.channels_last)
        return network.to(self.device).eval()

    def _bases(self):
        with np.load(self.folder / "bases.npz") as file:
            return {
                f"network.{n}": [torch.from_numpy(file[n]).to(self.device)]
                for n in file.files
            }

    def _placed(self, images: np.ndarray) -> torch.Tensor:
        found = torch.from_numpy(images).permute(0, 3, 1, 2)
        form = torch.contiguous_format
        if self.options.channels_last:
            form = torch.channels_last
        return found.to(self.device).contiguous(memory_format=form)

    def _labels(self, labels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(labels).long().to(self.device)

    def _rows(self, name: str):
        return self._labels(given.rows(name, self.folder))

    @property
    def stages(self) -> dict[str, Callable[[], Any]]:
        """What is called, by name."""
        free = {name: [b[:, :0] for b in bases] for name, bases in self.bases.items()}
        stages = {
            "statistics": self._statistics,
            "subspaces": self._subspaces,
            "inversion": self._inversion,
            "unlearning": lambda: self._unlearning(self.bases),
            "unprojected": lambda: self._unlearning(free),
            "projection": self._projection,
            "training": self._training,
            "unsc": self._unsc,
            "covarnav": self._covarnav,
        }
        if self.compiled:
            return {name: stages[name] for name in COMPILED}
        return stages

    def before(self, stage: str) -> None:
        """What a stage starts from and is not part of it."""
        self.network.load_state_dict(self.original)
        self.network.eval()
        if stage == "subspaces" and self.moments is None:
            self._statistics()

    def _statistics(self):
        classes = self.retained_labels.unique().tolist()
        self.moments = class_moments(
            self.network,
            self.retained,
            self.retained_labels,
            classes,
            batch_size=self.options.batch,
        )

    def _subspaces(self):
        class_subspaces(self.moments, energy=given.ENERGY, merge_energy=given.ENERGY)

    def _inversion(self):
        invert(
            self.objective,
            self._placed(self.inputs.start),
            self._labels(self.inputs.start_labels),
            steps=self.options.steps,
            rate=given.INVERSION_RATE,
        )

    def _unlearning(self, bases):
        unlearn(
            self.network,
            self.forgotten,
            self.targets,
            bases,
            rate=given.RATE,
            rows=self._rows("steps"),
        )

    @torch.no_grad()
    def _projection(self):
        updates = projected_weights(self.network, self.bases)
        for _ in range(given.PROJECTIONS):
            updates = [(project(update, basis), basis) for update, basis in updates]

    def _training(self):
        count = self.options.steps * self.options.batch
        images, labels = self.inputs.training(count)
        shuffled = torch.randperm(count).to(self.device)
        train(
            self.network,
            self._placed(images),
            self._labels(labels),
            rate=given.RATE,
            rows=shuffled.split(self.options.batch),
        )

    def _unsc(self):
        return unsc(
            self.network,
            self.forgotten,
            (self.retained, self.retained_labels),
            [given.FORGOTTEN],
            energy=given.ENERGY,
            merge_energy=given.ENERGY,
            rate=given.RATE,
            rows=self._rows("request"),
            batch_size=self.options.batch,
        )

    def _covarnav(self):
        retained = self.retained_labels.unique()
        labels = torch.full((len(self.forgotten),), given.FORGOTTEN)
        covarnav(
            self.network,
            (self.forgotten, labels.to(self.device)),
            [given.FORGOTTEN],
            retained.repeat(given.per_class(self.options.batch)),
            weights=tuple(given.PRIOR.values()),
            inversion_steps=self.options.steps,
            inversion_rate=given.INVERSION_RATE,
            energy=given.ENERGY,
            rate=given.RATE,
            rows=self._rows("request"),
            batch_size=self.options.batch,
        )

    def agreement(self, library: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Moments, bases and logits of a small request, in full precision.

        Args:
          library: what the library's side found, whose moments are decomposed too.
        """
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        self.before("unsc")
        few = self.inputs.small()
        retained, labels = self._placed(few.retained), self._labels(few.retained_labels)
        forgotten, classes = self._placed(few.forgotten), labels.unique().tolist()
        moments = class_moments(self.network, retained, labels, classes)
        after, bases = unsc(
            self.network,
            forgotten,
            (retained, labels),
            [given.FORGOTTEN],
            energy=given.ENERGY,
            merge_energy=given.ENERGY,
            rate=given.RATE,
            rows=self._rows("agreement"),
        )
        seen = torch.cat([forgotten, retained])
        with torch.no_grad():
            found = {"before": self.network(seen), "after": after(seen)}
        torch.backends.cudnn.allow_tf32 = tf32
        for name in bases:
            grams = [moments[c][name][0] for c in classes]
            found[f"moments/{name}"] = torch.stack(grams)
            found[f"bases/{name}"] = bases[name][0]
        for name, [basis] in self._bases_of(library, classes).items():
            found[f"same/{name}"] = basis
        return {n.replace("network.", ""): v.cpu().numpy() for n, v in found.items()}

    def _bases_of(self, library, classes):
        """The bases that the library's moments have here."""
        moments = {
            c: {
                name.removeprefix("moments/"): torch.from_numpy(grams[i : i + 1])
                for name, grams in library.items()
                if name.startswith("moments/")
            }
            for i, c in enumerate(classes)
        }
        return class_subspaces(moments, energy=given.ENERGY, merge_energy=given.ENERGY)

    def released(self) -> dict[str, Any]:
        """Times of the released procedure, see `released_procedure`."""
        self.before("statistics")
        return timed(self.network, self.retained, self.retained_labels)

    def describe(self) -> dict[str, Any]:
        """The device, and versions."""
        name = "cpu"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        return {"device": name, "versions": {"torch": torch.__version__}}

    def device_peak(self) -> int | None:
        """The allocator's peak since it was reset, on a GPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device)

    def reset_peak(self) -> None:
        """Count the peak anew, on a GPU."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def wait(self) -> None:
        """For the GPU, if there is one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
