"""The images that stood in for retained data, and how well they did."""

import base64
import io

import numpy as np

from jaxunlearn.metrics.subject import title_of_layer
from jaxunlearn.report.contents import Cell, Contents, MissingError, PageTable
from jaxunlearn.report.elements import escaped, number, paragraph, table, unfolded
from jaxunlearn.report.measures import Measures

_MOST_CLASSES, _EACH = 24, 8
# Pixels of all images together, before they are stored.
_PIXELS = 600_000


def images(contents: Contents, measures: Measures) -> str:
    """Some of each class, and what was measured of them."""
    del measures
    if contents.proxies is None:
        msg = (
            "There are no proxy images in this folder: CovarNav makes them, as in "
            "`jaxunlearn run --methods covarnav`."
        )
        raise MissingError(msg)
    data = contents.proxies
    pixels = visible(np.asarray(data.images))
    classes = np.unique(data.labels)
    size = pixels[0].size
    each = max(1, min(_EACH, _PIXELS // (size * min(len(classes), _MOST_CLASSES))))
    strips = "".join(
        _strip(pixels[data.labels == c][:each], contents.label(int(c)))
        for c in classes[:_MOST_CLASSES]
    )
    said = (
        f"{len(data)} images stood in for the retained data; shown are {each} of each "
        f"class{_of(classes)}, drawn out of the original by model inversion."
    )
    text = f'<div class="strips">{strips}</div>{paragraph(said, "caption")}'
    return text + _quality(contents)


def _of(classes) -> str:
    more = len(classes) > _MOST_CLASSES
    return f" for {_MOST_CLASSES} of {len(classes)} classes" if more else ""


def _strip(pixels: np.ndarray, label: str) -> str:
    n, h, w, c = pixels.shape
    gap = max(1, w // 8)
    # What is between the images is clear.
    sheet = np.zeros((h, n * (w + gap) - gap, c + 1), np.uint8)
    for i, image in enumerate(pixels):
        sheet[:, i * (w + gap) : i * (w + gap) + w, :c] = image
        sheet[:, i * (w + gap) : i * (w + gap) + w, c] = 255
    name = escaped(label)
    return (
        f'<figure class="strip"><img src="data:image/png;base64,{png(sheet)}" '
        f'alt="{n} proxy images of class {name}" width="{sheet.shape[1]}" '
        f'height="{h}"><figcaption>{name}</figcaption></figure>'
    )


def _quality(contents: Contents) -> str:
    quality = contents.proxy_quality
    if not quality:
        return paragraph(
            "How well they stand for the retained data was not measured: `jaxunlearn "
            "run --judge-proxies` does."
        )
    heads = [
        ("layer", ""),
        ("captured", "share of the retained data's energy in the proxies' subspace, %"),
        ("rank", "of the proxies' subspace"),
        ("true rank", "of the retained data's subspace"),
        ("mean angle", "between the two, degrees"),
        ("largest angle", "between the two, degrees"),
    ]
    captured = quality["captured_energy"]
    rows = [
        (
            Cell(title_of_layer(path)),
            number(None if share is None else 100 * share, ".2f"),
            *(
                number(_first(quality.get(name, {}).get(path)), form)
                for name, form in (
                    ("ranks", ".0f"),
                    ("true_ranks", ".0f"),
                    ("mean_angle", ".1f"),
                    ("largest_angle", ".1f"),
                )
            ),
        )
        for path, share in captured.items()
    ]
    said = f"The original recognises {quality['accuracy']:.1f} % of them"
    second = quality.get("second_accuracy")
    said += "." if second is None else f", a retrained model {second:.1f} %."
    numbers = table(PageTable("Proxies beside the retained data", heads, rows))
    return paragraph(said) + unfolded("The numbers", numbers)


def _first(value) -> float | None:
    return float(np.mean(value)) if isinstance(value, list) else value


def visible(pixels: np.ndarray) -> np.ndarray:
    """Grey or colour images of bytes, rescaled where they are not in [0, 1]."""
    if pixels.shape[-1] not in (1, 3):
        pixels = pixels.mean(axis=-1, keepdims=True)
    if pixels.dtype == np.uint8:
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        pixels = (pixels - low) / max(high - low, 1e-12)
    return (255 * pixels).round().astype(np.uint8)


def png(image: np.ndarray) -> str:
    """Grey or colour, and opacity, `[h, w, 2 or 4]` bytes, as base64 of a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
