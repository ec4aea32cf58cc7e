"""How a budget is shared out among the parts of `ResetAndDistill`, beforehand."""

import dataclasses
import math
from typing import Any

from jaxunlearn.capture.cutting import Cut
from jaxunlearn.methods.batch_statistics import PROBED
from jaxunlearn.methods.multiply_adds import Costs

# Shares of the training samples that the moments, and each trial, read; and what they
# read at most: a moment's rows are images times positions.
_MOMENTS, _OUTPUT_MOMENTS, _TRIAL = 1 / 6, 1 / 12, 1 / 6
_MOST_MOMENTS, _MOST_OUTPUT_MOMENTS, _MOST_TRIED = 1024, 512, 2048
# The most validation samples that accuracies and confidence are taken of.
_MOST_JUDGED = 2048
# What each of them reads at least, and how many steps tell anything.
_FEWEST, _FEWEST_STEPS = 128, 10
# The share of what is left that caching takes: few images, seen often, do as well as
# many (Fashion-MNIST, accuracy on validation data).
_CACHED = 1 / 8


@dataclasses.dataclass(frozen=True)
class Portion:
    """Of one distillation: images that are cached, of these for statistics, steps."""

    rows: int
    statistics: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Allotment:
    """What each part may cost, in multiply-adds; nothing is computed.

    Attributes:
      method: a `ResetAndDistill`.
      costs: of the network.
      cut: of the network.
      trained, validation: how many samples are trained on and chosen by.
      passed: how many make one pass.
    """

    method: Any
    costs: Costs
    cut: Cut
    trained: int
    validation: int
    passed: int

    @property
    def total(self) -> float:
        """The budget."""
        return self.method.budget * self.passed * self.costs.step()

    @property
    def size(self) -> int:
        """Of a minibatch."""
        return min(self.method.batch_size, self.trained)

    @property
    def trials(self) -> int:
        """How many there are at most: the smallest damping is taken untried.

        But the old layers are tried, which the others are compared with.
        """
        count = len({*self.method.dampings})
        return 0 if self.cut.at_images or count == 1 else count

    @property
    def judged(self) -> int:
        """How many validation samples are read."""
        return min(self.validation, _MOST_JUDGED)

    def moments(self) -> tuple[int, int]:
        """How many images the moments of inputs and of outputs are taken of."""
        if self.cut.at_images:
            return 0, 0
        few = min(self._share(_OUTPUT_MOMENTS), _MOST_OUTPUT_MOMENTS)
        return moment_images(self.trained), few

    def trial(self) -> Portion:
        """Of each trial."""
        rows = min(self._share(_TRIAL), _MOST_TRIED)
        return self._steps(rows, self.method.trial * self.total)

    def distillation(self, spent: float | None = None) -> Portion:
        """Of the final one, after so much; by default after all trials."""
        if spent is None:
            spent = self.teacher() + sum(self.fixed().values())
        return self._steps(self.rows(), self.total - spent)

    def rows(self) -> int:
        """Images to cache: all, or what a share of what is left pays for."""
        forward = self.costs.forward()
        # Of an image: targets, statistics of a fourth, and what is below the cut.
        each = 1.25 * forward + self._below()
        left = self.total - sum(self.fixed().values()) - self.judged * forward
        return min(self.trained, max(_FEWEST, int(left * _CACHED / each)))

    def fixed(self) -> dict[str, float]:
        """What is spent before the distillation, by stage, but for the teacher."""
        if self.cut.at_images:
            return {}
        inputs, outputs = self.moments()
        moments = inputs * self.costs.moments() + outputs * self.costs.output_moments()
        spent = {"moments": moments + self.costs.decompositions()}
        if self.trials:
            spent["trials"] = self.trials * self.of(self.trial())
        return spent

    def teacher(self) -> float:
        """Of the original's outputs on cached and on validation images."""
        return (self.rows() + self.judged) * self.costs.forward()

    def of(self, portion: Portion) -> float:
        """Of a distillation, its accuracy on validation data included."""
        forward = self.costs.forward()
        probed = 3 * min(PROBED, portion.statistics)
        return (
            (portion.statistics + probed + self.judged) * forward
            + portion.rows * self._below()
            + portion.steps * self.size * self.costs.step(self.cut.above)
        )

    def by_stage(self) -> dict[str, float]:
        """All of it, where every trial is run."""
        steps = {"steps": self.of(self.distillation())}
        return {"teacher": self.teacher(), **self.fixed(), **steps}

    def check(self) -> None:
        """Refuse a budget that leaves too few steps, and say what would do."""
        if self._suffices():
            return
        method, enough = self.method, max(self.method.budget, 0.01)
        while True:
            # The next number of two digits.
            digit = 10.0 ** (math.floor(math.log10(enough)) - 1)
            enough = round(digit * (math.floor(enough / digit + 1e-6) + 1), 12)
            raised = method.replace(budget=enough)
            if dataclasses.replace(self, method=raised)._suffices():
                break
        advice = "" if self.cut.at_images else ", or give fewer dampings"
        msg = (
            f"budget is {method.budget:g} passes over the retained data, and with "
            f"{self.passed} retained samples moments, trials and {_FEWEST_STEPS} steps "
            f"each need {enough:g}: raise budget{advice}."
        )
        raise ValueError(msg)

    def _suffices(self) -> bool:
        portions = [self.distillation(), *([self.trial()] if self.trials else [])]
        return all(one.steps >= _FEWEST_STEPS for one in portions)

    def _below(self) -> float:
        return self.costs.forward() - self.costs.forward(self.cut.above)

    def _share(self, share: float) -> int:
        return _share(self.trained, share)

    def _steps(self, rows: int, budget: float) -> Portion:
        statistics = 0
        if not self.cut.at_images:
            # A fourth, in whole batches.
            size = min(256, rows)
            statistics = max(size, rows // 4 // size * size)
        left = budget - self.of(Portion(rows, statistics, 0))
        each = self.size * self.costs.step(self.cut.above)
        return Portion(rows, statistics, math.floor(left / each))


def moment_images(trained: int) -> int:
    """Of so many samples, how many the moments of inputs are taken of."""
    return min(_share(trained, _MOMENTS), _MOST_MOMENTS)


def _share(count: int, share: float) -> int:
    return min(count, max(_FEWEST, round(share * count)))
