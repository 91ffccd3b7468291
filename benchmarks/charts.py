"""The pictures of the tables: bars with their spread, for a light and a dark page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.figures import Cell, Cells, text, value
from benchmarks.tables.table import Table
from tools.pictures import svg

WIDTH, LEFT, RIGHT, TOP, STEP = 860, 390, 90, 64, 26
LIGHT = (
    ".head{font-size:15px;font-weight:600}.bar{fill:#8c959f}.ours{fill:#1a7f4b}"
    ".spread{stroke:#1f2328;stroke-width:1.5}"
)
DARK = ".bar{fill:#6e7681}.ours{fill:#2f9e6b}.spread{stroke:#e6edf3}"


def draw(table: Table, rows: Mapping[str, Cells]) -> str:
    """Return the picture of the rows that were measured."""
    bars = {name: cells.get(table.chart.column) for name, cells in rows.items()}
    numbers = {name: cell for name, cell in bars.items() if cell and not isinstance(cell, str)}
    what = f"{table.chart.title}. " + " ".join(
        f"{_plain(name)}: {text(cell, table.chart.form)}." for name, cell in numbers.items()
    )
    height = TOP + STEP * len(numbers) + 20
    body = _body(table, numbers)
    return svg.picture(WIDTH, height, what, body, light=LIGHT, dark=DARK)


def _body(table: Table, bars: Mapping[str, Cell]) -> Iterator[str]:
    base = table.chart.baseline
    most = max((_high(cell) for cell in bars.values()), default=1) - base or 1
    scale = (WIDTH - LEFT - RIGHT) / most

    def x(number: float) -> float:
        return round(LEFT + max(0.0, number - base) * scale, 1)

    yield svg.text(24, 34, table.chart.title, "head")
    for number, (name, cell) in enumerate(bars.items()):
        y = TOP + STEP * number
        kind = "ours" if "conn_guard" in name or "reaper" in name else "bar"
        kind = "ours" if table.name == "overhead" else kind
        yield svg.text(LEFT - 12, y + 13, _plain(name), anchor="end")
        yield svg.box(LEFT, y, max(1, x(value(cell)) - LEFT), 18, kind, round_by=2)
        end = x(value(cell))
        if isinstance(cell, dict) and cell["low"] != cell["high"]:
            end = max(end, x(cell["high"]))
            yield f'<path class="spread" d="M{x(cell["low"]):g} {y + 9}H{x(cell["high"]):g}"/>'
        yield svg.text(end + 8, y + 13, format(value(cell), table.chart.form))


def _high(cell: Cell) -> float:
    return cell["high"] if isinstance(cell, dict) else value(cell)


def _plain(name: str) -> str:
    return name.replace("`", "")
