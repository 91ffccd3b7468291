"""The live table that the leak matrix shows while it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from tests.leaks.outcomes import Outcome, Row, rows
from tests.leaks.rings import COLUMNS

ROWS_SHOWN = 20


class Progress:
    """A bar and the newest rows in a terminal; elsewhere one line for each cell."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.console = Console(highlight=False)
        self.columns = columns
        self.outcomes: list[Outcome] = []
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )
        self.live = Live(
            console=self.console, get_renderable=self._show, auto_refresh=self.console.is_terminal
        )

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def begin(self, environment: str, total: int) -> None:
        self.outcomes.clear()
        self.task = self.bar.add_task(environment, total=total)

    def skip(self, text: str) -> None:
        self.bar.remove_task(self.task)
        self.console.print(text)

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.bar.advance(self.task)
        if not self.console.is_terminal:
            self.console.print(
                f"{outcome.key}: {outcome}{'' if outcome.kept else '  <- to be closed'}",
                soft_wrap=True,
            )
        if outcome.error:
            self.console.print(outcome.error, style="red", soft_wrap=True)

    def print_matrix(self, matrix: Sequence[Row]) -> None:
        self.console.print(self._table(matrix))

    def _show(self) -> Group:
        newest = self.outcomes[-ROWS_SHOWN * len(self.columns) :]
        return Group(self._table(rows(newest)[-ROWS_SHOWN:]), self.bar)

    def _table(self, matrix: Sequence[Row]) -> Table:
        table = Table(
            "server", "mechanism", "CONN_MAX_AGE", *(COLUMNS[column] for column in self.columns)
        )
        for row in matrix:
            cells = [_colored(row, column) for column in self.columns]
            table.add_row(row.server, row.title, row.setting, *cells)
        return table


def _colored(row: Row, column: str) -> str:
    text = row.text(column)
    if not row.kept(column):
        return f"[bold red]{text}[/]"
    if row.reasons(column):
        return f"[yellow]{text}[/]"
    return f"[green]{text}[/]" if text == "0" else text
