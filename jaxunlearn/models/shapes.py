"""Sentences about images that a network cannot take."""

from jaxtyping import Array


def check_side(network: str, images: Array, least: int) -> None:
    """Refuse images of which a side is shorter than `least` pixels.

    Raises:
      ValueError: says what the network was given and what it needs.
    """
    height, width = images.shape[1:3]
    if min(height, width) < least:
        msg = (
            f"{network} needs images of {least} x {least} pixels or more; these are "
            f"{height} x {width}. Resize them (datasets.load(..., size=...), --size), "
            "or take a smaller network."
        )
        raise ValueError(msg)
