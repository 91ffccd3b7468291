"""docs/reference/benchmarks.md and its pictures, made from the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import charts
from benchmarks.figures import Cells, text
from benchmarks.results import Result
from benchmarks.tables import TABLES
from benchmarks.tables.table import Figures, Table

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = Path("reference", "benchmarks.md")
HEAD = """
# Benchmarks

This page compares conn_guard's cost and duration with other ways to bound PostgreSQL's sessions.
[Which tool when](../explanation/which-tool-when.md) says what each of them is for.
`python3 dev.py nox -s bench` measures every table on your machine and writes this page.
`python3 dev.py nox -s bench -- --only load` measures one table anew and keeps the others.

Trust the ratios: both figures of a ratio were measured under the same load in one run.
A cell with a spread reads *median (lowest to highest)*, unless the table names an interval.
*n* is the number of measurements.
""".strip()


def files(results: Mapping[str, Result], docs: Path = DOCS) -> dict[Path, str]:
    """Return the text of the page and of each picture by its path."""
    made = {docs / PAGE: render(results)}
    for name, table in TABLES.items():
        if name in results and _measured(table, results[name].rows):
            path = docs / "images" / f"bench-{name}.svg"
            made[path] = charts.draw(table, results[name].rows)
    return made


def render(results: Mapping[str, Result]) -> str:
    """Return the page; it says of a table without results that it was not measured."""
    parts = [HEAD]
    for name, table in TABLES.items():
        parts.append(f"## {table.title}\n\n{table.about}")
        if name in results:
            parts += _result(table, results[name])
        else:
            parts.append("This table was not measured.")
    return "\n\n".join(parts) + "\n"


def _result(table: Table, result: Result) -> Iterator[str]:
    if result.small:
        yield "**This is a trial with tiny sizes: its figures mean nothing.**"
    yield "\n".join(_lines(table, result.rows))
    if not result.small:
        try:
            yield table.says(Figures(result.rows))
        except KeyError:
            yield "Not every row was measured, so the table is not summed up here."
    if _measured(table, result.rows):
        yield f"![The table above as bars: {table.chart.title}.](../images/bench-{table.name}.svg)"
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    yield (
        f"Measured on {result.date} by `{result.command}` in {result.seconds:.0f} seconds, on"
        f" {machine['cores']} cores, {machine['RAM']} of RAM, {machine['kernel']}"
        f" {machine['processor']}; the load average was {result.load_before} before.\n"
        f"Versions: {versions}."
    )


def _lines(table: Table, rows: Mapping[str, Cells]) -> Iterator[str]:
    yield f"| {' | '.join([table.first, *(each.title for each in table.columns)])} |"
    yield "|" + "---|" * (len(table.columns) + 1)
    for name, cells in rows.items():
        if "failed" in cells and isinstance(cells["failed"], str):
            shown = [cells["failed"], *[""] * (len(table.columns) - 1)]
        else:
            shown = [text(cells.get(each.key), each.form) for each in table.columns]
        yield f"| {' | '.join([name, *shown])} |"


def _measured(table: Table, rows: Mapping[str, Cells]) -> bool:
    """Return whether the picture of *table* has a bar."""
    column = table.chart.column
    return any(not isinstance(cells.get(column), (str, type(None))) for cells in rows.values())
