"""A table of the page: its columns, how its rows are measured, and the sentence below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from benchmarks.figures import Cells, value


class Size(Enum):
    """How much is measured."""

    FULL = "full"
    TRIAL = "trial"
    """Tiny sizes, to try the code; the figures mean nothing."""


Measured = tuple[str, Cells]
"""The name of a row and its cells. A later one of the same name replaces it."""


@dataclass(frozen=True)
class Column:
    """A column; *form* is the format of its numbers, as in `.1f`."""

    key: str
    title: str
    form: str = ".0f"


@dataclass(frozen=True)
class Chart:
    """A picture of one column, as bars."""

    column: str
    title: str
    form: str
    baseline: float = 0
    """Bars begin at this value."""


class Figures:
    """The medians of a table's rows, for its sentence."""

    def __init__(self, rows: Mapping[str, Mapping[str, object]]) -> None:
        self._rows = rows

    def __call__(self, row: str, column: str) -> float:
        """Return the median of a cell. Raises KeyError if it was not measured."""
        cell = self._rows[row][column]
        if cell is None or isinstance(cell, str):
            raise KeyError(row)
        return value(cell)

    def word(self, row: str, column: str) -> str:
        """Return the text of a cell without a number. Raises KeyError for any other cell."""
        cell = self._rows[row][column]
        if not isinstance(cell, str):
            raise KeyError(row)
        return cell


@dataclass(frozen=True)
class Table:
    """One table. *within* is the time that it may take, in seconds."""

    name: str
    title: str
    about: str
    first: str
    """The title of the column of names."""
    columns: tuple[Column, ...]
    rows: Callable[[Size], list[str]]
    """Returns the names of the rows."""
    measure: Callable[[Size], Iterator[Measured]]
    says: Callable[[Figures], str]
    """Returns what the table shows. It may raise KeyError if a row is absent."""
    chart: Chart
    within: float
    packages: tuple[str, ...] = ()


def reason(error: BaseException) -> str:
    """Return why a row has no figures, as one short line for a cell."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"not measured: {lines[0][:120].replace('|', '/')}"
