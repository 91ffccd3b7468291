"""The leak matrix as a page of the documentation."""

from __future__ import annotations

import platform
import string
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from tests.leaks.environments import Environment
from tests.leaks.outcomes import Outcome, Row
from tests.leaks.rings import COLUMNS

TEMPLATE = Path(__file__).with_name("page.md")


def render(
    matrix: Sequence[Row],
    columns: Sequence[str],
    skipped: Mapping[str, str],
    *,
    requests: int,
    rest: float,
) -> str:
    """Return the page for the rows of *matrix*."""
    notes: dict[str, int] = {}
    cells = _cells(matrix, columns, notes)
    return string.Template(TEMPLATE.read_text()).substitute(
        requests=requests,
        rest=f"{rest:g}",
        environments=_environments(matrix, columns, skipped),
        cells=cells,
        reasons="\n".join(f"{number}. {_sentence(reason)}" for reason, number in notes.items())
        or "None does.",
    )


def _environments(matrix: Sequence[Row], columns: Sequence[str], skipped: Mapping[str, str]) -> str:
    outcomes: dict[Environment, list[Outcome]] = {}
    for row in matrix:
        for of_column in row.columns.values():
            for outcome in of_column:
                outcomes.setdefault(outcome.environment, []).append(outcome)
    head = [
        "environment",
        "Django",
        "driver",
        "cells",
        *(f"{COLUMNS[column]}: cells with sessions left" for column in columns),
    ]
    lines = _header(head)
    for environment, found in outcomes.items():
        left = [
            sum(
                1
                for each in found
                if each.cell.column == column and each.result and each.result.left.total
            )
            for column in columns
        ]
        cells = sum(1 for each in found if each.cell.column == columns[0])
        lines.append(
            _line([environment.name, environment.django, environment.driver, cells, *left])
        )
    lines += ["", *(f"{name} is not among them: {reason}." for name, reason in skipped.items())]
    versions = dict.fromkeys(
        version for environment in outcomes for version in environment.versions()
    )
    lines.append(f"Versions: {', '.join(version.partition(' ;')[0] for version in versions)}.")
    system = f"{platform.system()} {platform.machine()}"
    lines.append(f"Measured on {system} on {date.today().isoformat()}.")  # noqa: DTZ011 - the reader's own day
    return "\n".join(lines)


def _cells(matrix: Sequence[Row], columns: Sequence[str], notes: dict[str, int]) -> str:
    lines = _header(["server", "mechanism", "setting", *(COLUMNS[column] for column in columns)])
    for row in matrix:
        cells = []
        for column in columns:
            text = row.text(column)
            for reason in row.reasons(column):
                text += f" [{notes.setdefault(reason, len(notes) + 1)}]"
            cells.append(text if row.kept(column) else f"**{text}**")
        lines.append(_line([row.server, row.title, row.setting, *cells]))
    return "\n".join(lines)


def _header(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:]}."
