"""What a study's page holds besides its comparisons: rank correlations, and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.cli.comparison import Column
from jaxunlearn.cli.exports import Rows, columns_of, wide_table

_NOTE = "Mean ± half a 95 % t-interval over training seeds."


def correlations(
    tables: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[tuple[str, str]],
    columns: Mapping[str, Column],
) -> list[str]:
    """Spearman's rank correlation of every pair, over rows, for each table."""
    from scipy.stats import spearmanr

    said = []
    for title, rows in tables.items():
        for pair in pairs:
            both = [
                [row[name]["mean"] for name in pair]
                for row in rows.values()
                if all(name in row for name in pair)
            ]
            if len(both) < 3:
                continue
            found = spearmanr(*zip(*both, strict=True))
            heads = " and ".join(columns[name].heading for name in pair)
            said.append(
                f"{title}: rank correlation of {heads} {found.statistic:+.2f} over "
                f"{len(both)} rows (p = {found.pvalue:.2g})."
            )
    return said


def table_of(rows: Rows, columns: Mapping[str, Column], title: str) -> str:
    """Of a measurement: every row, and what the columns are."""
    names = columns_of(rows, columns)
    lines = (f"- {columns[n].heading}: {columns[n].legend}" for n in names)
    parts = [
        f"# {title}",
        wide_table(rows, {}, "github", columns),
        "\n".join(lines),
        _NOTE,
    ]
    return "\n\n".join(parts)
