"""The result of each cell beside the promise of its column, and the rows of the matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tests.leaks.environments import Environment
from tests.leaks.harness import Cell, Result
from tests.leaks.mechanisms import MECHANISMS
from tests.leaks.rings import Expectation, expectation


@dataclass(frozen=True)
class Outcome:
    """One cell in one environment: its result, or why there is none."""

    environment: Environment
    cell: Cell
    result: Result | None = None
    error: str = ""

    def with_result(self, result: Result) -> Outcome:
        return replace(self, result=result)

    def with_error(self, error: str) -> Outcome:
        return replace(self, error=error)

    @property
    def key(self) -> str:
        cell = self.cell
        return " ".join(
            [self.environment.name, cell.server, cell.mechanism, cell.setting, cell.column]
        )

    @property
    def expected(self) -> Expectation:
        cell = self.cell
        return expectation(
            cell.column, cell.server, cell.mechanism, cell.setting, self.environment.series
        )

    @property
    def kept(self) -> bool:
        """Return whether the column gave what it owes."""
        if self.result is None:
            return False
        at_most = self.expected.at_most
        return at_most is None or (
            self.result.left.total <= at_most and not self.result.wrong_answers
        )

    def __str__(self) -> str:
        return str(self.result) if self.result else "not measured"


@dataclass(frozen=True)
class Row:
    """The outcomes of one mechanism on one server with one setting, by column, of every
    environment.
    """

    server: str
    mechanism: str
    setting: str
    columns: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))

    @property
    def title(self) -> str:
        return MECHANISMS[self.mechanism].title

    def text(self, column: str) -> str:
        """Return what *column* left in all environments: one value, or the least and the most."""
        outcomes = self.columns.get(column, [])
        results = [outcome.result for outcome in outcomes if outcome.result]
        if not results:
            return "not measured" if outcomes else ""
        left = [result.left.total for result in results]
        after = [result.left_after_collection.total for result in results]
        text = f"{_span(left)} / {_span(after)}" if max(left) else "0"
        if any(result.left.in_transaction for result in results):
            text += " tx"
        wrong = [result.wrong_answers for result in results]
        return f"{text} !{_span(wrong)}err" if max(wrong) else text

    def kept(self, column: str) -> bool:
        return all(outcome.kept for outcome in self.columns.get(column, []))

    def reasons(self, column: str) -> list[str]:
        """Return why *column* owes no zero here, once each, where it left something."""
        reasons = [
            outcome.expected.reason
            for outcome in self.columns.get(column, [])
            if outcome.result and (outcome.result.left.total or outcome.result.wrong_answers)
        ]
        return list(dict.fromkeys(filter(None, reasons)))


def rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """Return the outcomes as rows, in the order of the servers and of the mechanisms."""
    found: dict[tuple[str, str, str], Row] = {}
    for outcome in outcomes:
        place = (outcome.cell.server, outcome.cell.mechanism, outcome.cell.setting)
        found.setdefault(place, Row(*place)).columns[outcome.cell.column].append(outcome)
    order = {
        (server, mechanism.name, setting): index
        for index, (server, mechanism, setting) in enumerate(
            (server, mechanism, setting)
            for mechanism in MECHANISMS.values()
            for server in mechanism.servers
            for setting in mechanism.settings
        )
    }
    servers = list(dict.fromkeys(server for server, _, _ in order))
    return sorted(
        found.values(),
        key=lambda row: (servers.index(row.server), order[row.server, row.mechanism, row.setting]),
    )


def _span(numbers: list[int]) -> str:
    return (
        str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
    )
