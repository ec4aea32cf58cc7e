"""Flags that name samples to forget instead of classes, and what they come to."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from jaxunlearn import methods
from jaxunlearn.cli.flags import Command
from jaxunlearn.cli.indices import (
    Indices,
    digest,
    drawn,
    how_many,
    parse_amount,
    read_indices,
)
from jaxunlearn.cli.settings import File, check_seed
from jaxunlearn.tasks import Data, split_by_class, split_by_index

# Which of them excludes which.
_WAYS = ("forget", "forget_indices", "forget_random")


@dataclasses.dataclass(frozen=True, eq=False)
class Forgotten:
    """What is to be forgotten: classes, or samples of the training split.

    Attributes:
      classes: their numbers; `()` where samples are forgotten.
      indices: those of the samples, in ascending order, or None.
      seed: by which they were drawn, or None.
    """

    classes: tuple[int, ...] = ()
    indices: Indices | None = None
    seed: int | None = None

    def split(self, train: Data) -> tuple[Data, Data]:
        """What is to be forgotten of the training split, and what is retained."""
        if self.indices is None:
            return split_by_class(train, self.classes)
        return split_by_index(train, self.indices)

    def check_splits(self, splits: Mapping[str, Data]) -> None:
        """Refuse classes of which a split has no sample, or no other."""
        for data in splits.values() if self.indices is None else ():
            split_by_class(data, self.classes)

    def record(self) -> dict[str, Any] | None:
        """What results say of the samples; None where classes are forgotten."""
        if self.indices is None:
            return None
        said = {"count": len(self.indices), "sha256": digest(self.indices)}
        return said | {"seed": self.seed}

    def card(self) -> dict[str, Any]:
        """Fields of a `Card`."""
        if self.indices is None:
            return {"forgotten": self.classes}
        return samples_of_card(self.indices)


def samples_of_card(indices: Sequence[int] | Indices) -> dict[str, Any]:
    """Fields of a `Card` that say which samples were forgotten."""
    numbers = tuple(map(int, indices))
    return {"forgotten_samples": numbers, "samples_sha256": digest(numbers)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSettings(Command):
    """Which samples to forget, in place of classes.

    Attributes:
      forget_indices: forget these samples of the training split, not classes: a text of
        one index a line, a .json list or a .npy array. The first sample of the split
        is 0, in the order of the data set, without those for the test and for
        validation (which --split-seed chooses).
      forget_random: forget so many samples of the training split, drawn at random: a
        number, such as 100, or a share, such as 0.1 or 10%.
      forget_seed: what they are drawn by; by default --seed.
      samples_sha256: refuse samples other than those of this SHA-256, which is that of
        their indices, one a line in ascending order. Stored settings have it.
    """

    forget_indices: File | None = None
    forget_random: Annotated[str | None, "N|SHARE"] = None
    forget_seed: int | None = None
    samples_sha256: Annotated[str | None, "SHA256"] = None

    @classmethod
    def instead(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a flag takes the place of: values of the other ways to say it."""
        said = [name for name in _WAYS if given.get(name)]
        if not said:
            return {}
        nothing = {"forget": (), "forget_indices": None, "forget_random": None}
        return nothing | {"samples_sha256": None, "forget_seed": None}

    @property
    def samplewise(self) -> bool:
        """Whether samples and not classes are forgotten."""
        return self.forget_indices is not None or self.forget_random is not None

    def check_forgotten(self, methods_used: Sequence[str]) -> None:
        """Refuse what cannot be before any data are read."""
        said = [name for name in _WAYS if getattr(self, name)]
        flags = [f"--{name.replace('_', '-')}" for name in said]
        if not said:
            msg = (
                "--forget names no class: give at least one, as in --forget 3; or "
                "samples by --forget-indices FILE or --forget-random N."
            )
            raise ValueError(msg)
        if len(said) > 1:
            msg = (
                f"{' and '.join(flags)} are given, and each says by itself what to "
                "forget: leave out all but one."
            )
            raise ValueError(msg)
        if self.forget_seed is not None:
            check_seed(self.forget_seed, "--forget-seed")
            if self.forget_random is None:
                msg = "--forget-seed is what --forget-random draws by: give both, or leave it out."  # noqa: E501
                raise ValueError(msg)
        if self.forget_random is not None:
            parse_amount(self.forget_random)
        for name in methods_used if self.samplewise else ():
            if reason := getattr(methods.by_name[name], "classwise", ""):
                msg = (
                    f"The method {name} {reason}, and has no meaning where samples are "
                    "forgotten: leave it out."
                )
                raise ValueError(msg)

    @property
    def forgotten_label(self) -> str:
        """What is forgotten, in the name of a folder."""
        if self.forget_indices is not None:
            return re.sub(r"[^\w.]+", "-", self.forget_indices.stem)
        if self.forget_random is not None:
            word = self.forget_random.replace("%", "-percent").replace(" ", "")
            seed = self.forget_seed
            return f"random-{word}" + ("" if seed is None else f"-by-{seed}")
        return "-".join(map(str, self.forget))

    def forgotten(self, train: Data, seed: int) -> Forgotten:
        """The samples that are meant, of this training split; or the classes."""
        count, sha256 = len(train), self.samples_sha256
        if not self.samplewise:
            return Forgotten(self.forget)
        if self.forget_indices is not None:
            found = Forgotten(indices=read_indices(self.forget_indices, count))
        else:
            seed = seed if self.forget_seed is None else self.forget_seed
            number = how_many(self.forget_random, count)
            found = Forgotten(indices=drawn(number, count, seed), seed=seed)
        if sha256 not in (None, digest(found.indices)):
            msg = (
                f"The settings are of {short_hash(sha256)} as the SHA-256 of the "
                f"samples to forget, and these have {short_hash(digest(found.indices))}"
                ": restore the file of --forget-indices, or give it anew."
            )
            raise ValueError(msg)
        return found


def short_hash(sha256: str) -> str:
    """Its first digits, enough to tell some apart."""
    return sha256[:12]
