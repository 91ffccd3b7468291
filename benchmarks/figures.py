"""Figures of a table: a median with its spread, and their texts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

Spread = dict[str, float]
"""The median, the lowest and the highest value, and n, the number of values."""
Cell = str | float | Spread | None
Cells = dict[str, Cell]


def spread(values: Sequence[float]) -> Spread:
    """Return the median of *values*, with the lowest and the highest."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


def ratios(values: Sequence[float], bases: Sequence[float]) -> Spread:
    """Return the spread of the ratios of pairs: the two of a pair met the same load."""
    return spread([value / base for value, base in zip(values, bases, strict=False)])


def rate(hits: int, of: int) -> Spread:
    """Return *hits* per 1,000 with the Wilson interval of 95 %."""
    share, z = hits / of, 1.96
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    reach = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return {
        "median": 1000 * share,
        "low": max(0.0, 1000 * (middle - reach)),
        "high": 1000 * (middle + reach),
        "n": of,
    }


def value(cell: Any) -> float:
    """Return the number of a cell, of a spread its median."""
    return float(cell["median"] if isinstance(cell, dict) else cell)


def text(cell: Cell, form: str) -> str:
    """Return a cell as it is printed; *form* is the format of its numbers, as in `.1f`."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, dict):
        return format(cell, form)
    middle, low, high = (format(cell[name], form) for name in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"
