"""How much each term of the inversion's objective weighs."""

import dataclasses

import numpy as np

# Of the terms that need something to compare the images with.
_FEATURE, _MOMENT, _COMPETITION = 1e-1, 1e-1, 1.0


@dataclasses.dataclass(frozen=True)
class ImagePrior:
    """Weights of what is added to the cross-entropy (whose weight is 1).

    Attributes:
      total_variation: of `mean|dx| + mean|dy|` over neighbouring pixels.
      l2: of the mean over pixels of the norm over channels.
      feature: of `sum_l |mean_l - running mean_l| + |var_l - running var_l|`, Euclidean
        norms over BatchNorm layers `l`, mean and (biased) variance of the layer's input
        over the batch. None: 0.1 where the network has BatchNorm.
      moment: of `sum_l |C_l - C'_l| / |C'_l|`, Frobenius norms over the layers whose
        second moment is given, both moments as means over rows. None: 0.1 where some
        are given.
      competition: of `1 - JS / ln 2`, JS the Jensen-Shannon divergence between the
        probabilities of the classifier and of a student: images on which the two agree
        cost most. None: 1 where a student is given.

    Raises:
      ValueError: a weight is negative or not finite.

    Source: DeepInversion (arXiv 1912.08795) for all but the moments; the first three
    weights are Brainwash's (arXiv 2311.11995), which shares authors with CovarNav, the
    other two our own.
    """

    total_variation: float = 1e-3
    l2: float = 1e-1
    feature: float | None = None
    moment: float | None = None
    competition: float | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                msg = f"ImagePrior.{field.name} must be finite and not negative; it is {value}."  # noqa: E501
                raise ValueError(msg)

    def resolved(
        self, *, batch_norm: bool, moments: bool, student: bool
    ) -> "ImagePrior":
        """With numbers for None, given what there is to compare with.

        Raises:
          ValueError: a term has a weight and nothing to compare with.

        >>> ImagePrior().resolved(batch_norm=True, moments=False, student=False).feature
        0.1
        """
        there = {
            "feature": (
                batch_norm,
                _FEATURE,
                "the network has no BatchNorm whose running statistics its images "
                "could match. Give second moments of its layers' inputs instead "
                "(moments=), or leave the weight out",
            ),
            "moment": (
                moments,
                _MOMENT,
                "there are no moments to match. Give those of some layers (moments=, "
                "as second_moments returns them), or leave the weight out",
            ),
            "competition": (
                student,
                _COMPETITION,
                "there is no student to compete with. Give one (student=, another "
                "Classifier), or leave the weight out",
            ),
        }
        weights = {}
        for name, (present, default, refusal) in there.items():
            given = getattr(self, name)
            if given and not present:
                msg = f"ImagePrior.{name} is {given}, and {refusal}."
                raise ValueError(msg)
            weights[name] = (default if given is None else given) if present else 0.0
        return dataclasses.replace(self, **weights)
