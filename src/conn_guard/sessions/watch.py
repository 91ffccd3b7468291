"""The state of a live view as values: what is shown of a snapshot, in which order, and history."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from conn_guard.sessions.groups import DEFAULT_BY, Field, Row, Snapshot, grouped
from conn_guard.sessions.policy import Verdict
from conn_guard.sessions.render.report_text import narrow
from conn_guard.sessions.report import Action, Outcome, Slots
from conn_guard.text import duration, printable

OUT_OF_SCOPE = "not in scope"
WORDS = {Verdict.ACTIVE: "in use", Verdict.TOO_YOUNG: "not due yet"}
"""The words for verdicts whose reason reads badly on a screen."""
LEVELS = " ▁▂▃▄▅▆▇█"
PIDS_TOLD = 5
"""Pids that are named for a reason to spare."""

Key = tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of a snapshot that is shown; each change returns another view."""

    by: Sequence[Field] = DEFAULT_BY
    wanted: str = ""
    """Only sessions with this text in one of their names are shown."""
    opened: Mapping[Field, str | None] | None = None
    """The group whose sessions are listed; None lists the groups."""
    column: int | None = None
    """The column that decides the order; None is the usual order."""
    is_reversed: bool = False

    def sorted_by(self, column: int) -> View:
        """Return the view in the order of *column*; the same column again reverses it."""
        is_again = column == self.column
        return replace(self, column=column, is_reversed=is_again and not self.is_reversed)

    def sorted_by_next(self, columns: int) -> View:
        """Return the view in the order of the next of *columns* columns."""
        column = -1 if self.column is None else self.column
        return replace(self, column=(column + 1) % max(1, columns), is_reversed=False)

    def next_by(self, usual: Sequence[Field]) -> View:
        """Return the view with the next grouping: *usual*, and then each field alone."""
        cycle = [tuple(usual), *((each,) for each in Field if (each,) != tuple(usual))]
        at = cycle.index(tuple(self.by)) if tuple(self.by) in cycle else -1
        by = cycle[(at + 1) % len(cycle)]
        return replace(self, by=by, opened=None, column=None, is_reversed=False)

    def shows(self, row: Row) -> bool:
        """Return whether the filter and the opened group have *row*."""
        if self.opened is not None and any(
            field.of(row) != value for field, value in self.opened.items()
        ):
            return False
        if not self.wanted:
            return True
        wanted, session = self.wanted.casefold(), row.session
        names = (str(session.pid), session.application_name, *(each.of(row) for each in Field))
        return any(wanted in (name or "").casefold() for name in names)


@dataclass(frozen=True)
class Line:
    """A line of the table: a group of sessions, or one session."""

    key: Key
    rows: Sequence[Row]
    values: Sequence[Any]
    """The values by which the line is sorted, column by column."""
    cells: Sequence[str]

    @property
    def name(self) -> str:
        """The line in a question or an answer."""
        if self.key[0] == "session":
            return f"pid {self.key[1]}"
        return ", ".join(each for each in self.key[1:] if each) or "the sessions without a name"

    @property
    def chosen(self) -> set[tuple[int, datetime | None]]:
        """The pid and backend_start of each session."""
        return {(each.session.pid, each.session.backend_start) for each in self.rows}

    @cached_property
    def would_end(self) -> int:
        """The number of sessions that the judge would not spare."""
        return sum(each.verdict is Verdict.REAP for each in self.rows)

    @property
    def others(self) -> str:
        """The reasons for which the other sessions would not be ended; "" if there are none."""
        return reasons(each.verdict for each in self.rows)


@dataclass(frozen=True)
class Table:
    """The lines of a view, and the titles of its columns."""

    titles: Sequence[str]
    right: Sequence[int]
    """The columns of numbers."""
    lines: Sequence[Line]
    order: str = ""
    """The title of the column that decides the order, and an arrow."""

    def widths(self, room: int) -> list[int]:
        """Return the width of each column, so that all fit in *room* if names are cut."""
        columns = zip(self.titles, *(each.cells for each in self.lines), strict=True)
        widths = [max(map(len, column)) for column in columns]
        if len(widths) > len(self.right) + 1:
            narrow(widths, self.titles, room - 2 * (len(widths) - 1))
        return widths


@dataclass
class History:
    """The slots in use at each look, the newest last; None is a look without an answer."""

    most: int = 500
    slots: deque[tuple[float, Slots | None]] = field(default_factory=deque)

    def add(self, seconds: float, slots: Slots | None) -> None:
        """Add the *slots* of a look at *seconds* on any clock."""
        self.slots.append((seconds, slots))
        while len(self.slots) > self.most:
            self.slots.popleft()

    def graph(self, width: int, height: int) -> list[str]:
        """Return *height* lines of *width* columns; a full column is a full server."""
        shown = list(self.slots)[-width:]
        columns = [_column(slots, height) for _, slots in shown]
        columns = [" " * height] * (width - len(columns)) + columns
        return ["".join(column[row] for column in columns) for row in range(height)]

    def words(self, width: int) -> str:
        """Return the highest number in *width* columns, and their time."""
        shown = list(self.slots)[-width:]
        used = [slots.used for _, slots in shown if slots]
        if len(shown) < 2 or not used:
            return ""
        return f"{min(used)} to {max(used)} in {duration(shown[-1][0] - shown[0][0])}"


def table(snapshot: Snapshot, view: View) -> Table:
    """Return the lines that *view* shows of *snapshot*, in its order."""
    rows = [each for each in snapshot.rows if view.shows(each)]
    made = _groups(rows, view.by) if view.opened is None else _sessions(rows, view.opened)
    usual = 0 if view.opened is None else len(made.titles) - 2
    column = usual if view.column is None else view.column
    return _ordered(made, column, is_reversed=view.is_reversed)


def reasons(verdicts: Iterable[Verdict | None]) -> str:
    """Return why sessions with *verdicts* would not be ended, with a number for each reason."""
    counts = Counter(_word(each) for each in verdicts if each is not Verdict.REAP)
    return ", ".join(f"{word} {count}" for word, count in counts.most_common())


def told(outcomes: Sequence[Outcome], asked: int) -> str:
    """Return what was done about *asked* sessions: how many were signalled, which were spared."""
    signalled = sum(each.action is Action.SIGNALLED for each in outcomes)
    parts = [f"signalled {signalled}"]
    others: dict[str, list[int]] = {}
    for each in outcomes:
        if each.action is not Action.SIGNALLED:
            reason = each.reason or each.action.value
            verb = {Action.FAILED: "failed", Action.NOT_DUE: "left alone"}.get(
                each.action, "spared"
            )
            word = _WORDS.get(reason, reason.replace("_", " "))
            others.setdefault(f"{verb} ({word})", []).append(each.session.pid)
    for what, pids in others.items():
        named = ", ".join(map(str, pids[:PIDS_TOLD])) + ", …" * (len(pids) > PIDS_TOLD)
        parts.append(f"{what} {len(pids)}: pid {named}")
    if missing := asked - len(outcomes):
        parts.append(f"gone before or not in scope {missing}")
    return "; ".join(parts)


_WORDS = {verdict.value: word for verdict, word in WORDS.items()}


def _word(verdict: Verdict | None) -> str:
    if verdict is None:
        return OUT_OF_SCOPE
    return WORDS.get(verdict, verdict.value.replace("_", " "))


def _column(slots: Slots | None, height: int) -> str:
    """Return one column of a graph, from the top down."""
    if slots is None:
        return " " * (height - 1) + "·"
    eighths = round(8 * height * min(100, slots.percent) / 100)
    eighths = max(eighths, 1) if slots.used else 0
    return "".join(LEVELS[min(8, max(0, eighths - 8 * row))] for row in reversed(range(height)))


def _ordered(made: Table, column: int, *, is_reversed: bool) -> Table:
    """Return *made* in the order of *column*: numbers fall and names rise, unless reversed."""
    column = min(column, len(made.titles) - 1)
    is_number = column in made.right or column == len(made.titles) - 1
    falls = is_number is not is_reversed
    key: Callable[[Line], Any] = lambda line: line.values[column]  # noqa: E731
    lines = sorted(made.lines, key=key, reverse=falls)
    return replace(made, lines=lines, order=f"{made.titles[column]} {'↓' if falls else '↑'}")


def _groups(rows: Sequence[Row], by: Sequence[Field]) -> Table:
    # The state stands before the names, as in the report.
    fields = sorted(by, key=lambda each: each is not Field.STATE)
    last = [] if Field.LAST in by else ["LAST"]
    titles = ["SESSIONS", *(each.name for each in fields), *last, "LONGEST", "REAPER"]
    lines = []
    for group in grouped(rows, by):
        names = [printable(group.key[each] or "-") for each in fields]
        names += [group.last or "-"] if last else []
        longest = -1.0 if group.longest is None else max(0.0, group.longest.total_seconds())
        fate = f"ends {group.would_end}" if group.would_end else "-"
        cells = [str(len(group)), *names, _time(longest), fate]
        values = [len(group), *(each.casefold() for each in names), longest, group.would_end]
        key = ("group", *(group.key[each] for each in by))
        lines.append(Line(key, group.rows, values, cells))
    return Table(titles, (0, len(titles) - 2), lines)


def _sessions(rows: Sequence[Row], opened: Mapping[Field, str | None]) -> Table:
    """Return a line for each of *rows*, without the columns that are equal in the whole group."""
    usual = (Field.STATE, Field.APPLICATION, Field.USER, Field.DATABASE, Field.CLIENT, Field.LAST)
    fields = [each for each in usual if each not in opened]
    titles = ["PID", *(each.name for each in fields), "FOR", "REAPER"]
    lines = []
    for row in rows:
        session = row.session
        names = [printable(each.of(row) or "-") for each in fields]
        seconds = max(0.0, session.in_state_for.total_seconds()) if session.state_change else -1.0
        ends = row.verdict is Verdict.REAP
        cells = [str(session.pid), *names, _time(seconds), "ends" if ends else _word(row.verdict)]
        values = [session.pid, *(each.casefold() for each in names), seconds, ends]
        key = ("session", str(session.pid), str(session.backend_start))
        lines.append(Line(key, [row], values, cells))
    return Table(titles, (0, len(titles) - 2), lines)


def _time(seconds: float) -> str:
    return "-" if seconds < 0 else duration(seconds)
