"""What happens in each layer: spectra, ranks, gradients, drift."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxunlearn.metrics.subject import title_of_layer
from jaxunlearn.report.contents import Cell, Contents, MissingError, PageTable
from jaxunlearn.report.drawing import INK
from jaxunlearn.report.elements import figure, number
from jaxunlearn.report.looks import Look, looks
from jaxunlearn.report.measures import Measures
from jaxunlearn.report.plots import Series, bars, lines

# Panels and rows, of networks with many layers.
_MOST_LAYERS = 12
_POINTS = 120
_ENERGIES = (0.9, 0.99, 0.999)


def spectra(contents: Contents, measures: Measures) -> str:
    """Eigenvalues of what retained data put into a layer, and where they are cut."""
    found = measures["statistics"]
    appearance = looks(contents.models)
    ranks = {m.name: m.record.get("ranks") or {} for m in contents.of("unlearned")}
    ranks = {name: of for name, of in ranks.items() if any(map(any, of.values()))}
    known = {p: s for p, s in found.spectra.items() if s is not None}
    if not known:
        msg = "Every layer is too wide for its spectrum to be computed in seconds."
        raise MissingError(msg)
    drawn = [
        _spectrum(n, path, known[path], ranks, appearance)
        for n, path in enumerate(_some(list(known)))
    ]
    rows = []
    for path in found.layers:
        spectrum = found.spectra[path]
        d = 0 if spectrum is None else len(spectrum)
        needed = [number(float("nan"))] * len(_ENERGIES)
        if d:
            shares = np.cumsum(spectrum)
            needed = [
                number(float(np.argmax(shares >= e * shares[-1]) + 1), ".0f")
                for e in _ENERGIES
            ]
        chosen = (_rank_cell(of.get(path)) for of in ranks.values())
        rows.append(
            (Cell(title_of_layer(path)), number(d or None, ".0f"), *needed, *chosen)
        )
    heads = [
        ("layer", ""),
        ("d", "fan-in: how many directions there are"),
        *(
            (f"{e:.4g}", f"directions that hold {e:.4g} of the energy")
            for e in _ENERGIES
        ),
        *((name, "rank of the subspace that it protects") for name in ranks),
    ]
    numbers = PageTable("Directions of each layer's input", heads, rows)
    caption = (
        "Energy of a layer's input in each direction, over "
        f"{found.samples:,} retained training samples of the original."
    )
    if ranks:
        caption += (
            " Upright lines are the ranks that methods protect: what is left of them "
            "does not move, what is right of them may. A method that protects proxies "
            "has a subspace of other images than these."
        )
    caption += _left_out(known, drawn)
    return figure(drawn, caption, numbers)


def gradients(contents: Contents, measures: Measures) -> str:
    """Why forgetting did or did not move a layer."""
    del measures
    values = {
        m.name: m.record["surviving_gradient"]
        for m in contents.of("unlearned")
        if m.record.get("surviving_gradient")
    }
    if not values:
        msg = (
            "No method of this folder projects its updates, or its files do not say "
            "what is left of them: `jaxunlearn run --methods covarnav unsc` does."
        )
        raise MissingError(msg)
    caption = (
        "Share of the squared norm of the forget gradient that the projection leaves, "
        "at the start. Where next to nothing is left, a layer cannot learn to forget, "
        "and what moves is elsewhere; 1 is a method that projects nothing."
    )
    return _by_layer(contents, values, "gradient", "surviving share", caption)


def drifts(contents: Contents, measures: Measures) -> str:
    """How far each layer's outputs have moved on retained inputs."""
    found = measures["statistics"]
    if not found.drifts:
        msg = (
            "No classifier of this folder has the original's parameters to be compared "
            "with."
        )
        raise MissingError(msg)
    caption = (
        "Root mean square change of a layer's outputs on the original's own inputs of "
        f"{found.samples:,} retained training samples, relative to the outputs: "
        "√(tr ΔWᵀCΔW / tr WᵀCW). Below 0.0003 it is rounding. Retrained models, which "
        "start from nothing, show what a change of everything is."
    )
    text = _by_layer(contents, found.drifts, "drift", "relative drift", caption)
    budgets = {
        m.name: m.record["drift"] for m in contents.models if m.record.get("drift")
    }
    if budgets:
        said = _budget_table(budgets)
        text += figure([], "Of the drift budget that was given.", said)
    return text


def _spectrum(n: int, path: str, spectrum, ranks, appearance) -> str:
    places = np.arange(1, len(spectrum) + 1)
    some = np.unique(
        np.geomspace(1, len(spectrum), min(_POINTS, len(spectrum))).round().astype(int)
    )
    shown = np.maximum(spectrum / max(spectrum[0], 1e-300), 1e-9)[some - 1]
    marks = [
        (
            float(np.mean(of[path])),
            f"{name}: rank {_rank_cell(of[path]).text}",
            appearance[name].colour,
        )
        for name, of in ranks.items()
        if of.get(path)
    ]
    return lines(
        f"spectrum-{n}",
        [Series("eigenvalue", places[some - 1], shown, Look(INK, ".", "-"))],
        title=title_of_layer(path),
        axes=("direction", "relative to the largest"),
        label=f"Spectrum of the input of {path}.",
        marks=marks,
        log=True,
        points=_POINTS,
    )


def _by_layer(
    contents: Contents,
    values: Mapping[str, Mapping[str, float]],
    name: str,
    axis: str,
    caption: str,
) -> str:
    layers = list(dict.fromkeys(path for row in values.values() for path in row))
    titles = [title_of_layer(path) for path in layers]
    heads = [("layer", ""), *((model, axis) for model in values)]
    rows = [
        (Cell(title), *(number(row.get(path), ".3g") for row in values.values()))
        for path, title in zip(layers, titles, strict=True)
    ]
    shown = _some(layers, 40)
    drawn = bars(
        name,
        {model: [row.get(p) for p in shown] for model, row in values.items()},
        [title_of_layer(path) for path in shown],
        looks(contents.models),
        axis=f"{axis} (logarithmic; zeros are in the table)",
        label=f"{axis} of each layer; the table below has the numbers.",
        log=True,
    )
    numbers = PageTable(f"{axis.capitalize()} of each layer", heads, rows)
    return figure([drawn], caption + _left_out(layers, shown), numbers)


def _budget_table(budgets) -> PageTable:
    layers = list(dict.fromkeys(path for row in budgets.values() for path in row))
    heads = [("layer", ""), *((name, "share of the budget used") for name in budgets)]
    rows = [
        (
            Cell(title_of_layer(p)),
            *(number(row.get(p), ".3g") for row in budgets.values()),
        )
        for p in layers
    ]
    return PageTable("Drift budget used", heads, rows)


def _rank_cell(groups: Sequence[int] | None) -> Cell:
    if not groups:
        return Cell("", None)
    low, high = min(groups), max(groups)
    text = f"{low}" if low == high else f"{low} to {high}"
    return Cell(text, float(np.mean(groups)))


def _some(names: Sequence[str], most: int = _MOST_LAYERS) -> list[str]:
    """Evenly spread over the network, its ends among them."""
    if len(names) <= most:
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, most).astype(int)]


def _left_out(every: Sequence[str] | Mapping, shown: Sequence[str]) -> str:
    if len(shown) == len(every):
        return ""
    return f" Shown are {len(shown)} of {len(every)} layers; the table has all."
