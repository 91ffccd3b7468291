"""Remembers the sessions that a probe saw, look by look, and tells their fate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from conn_guard.sessions.groups import Row
from conn_guard.sessions.session import IN_TRANSACTION, State

Key = tuple[int, datetime | None]
"""The pid and the start of a session: a pid alone is given to another session later."""

_AT_REST = (State.IDLE, *IN_TRANSACTION)
_LEAST_WORK_SHARE = 0.1
"""An application with less of the work seen in the rounds works for others than the probe."""


class Mark(Enum):
    """A moment of a probe at which it looked."""

    BEFORE = "before the first round"
    LOADED = "when a round's last answer was there"
    QUIET = "when work after the answers should be over"
    RESTED = "at the end of a rest"


@dataclass(frozen=True)
class Look:
    """The sessions of the probed application at one moment of the server's clock."""

    at: datetime
    rows: tuple[Row, ...]

    @property
    def by_key(self) -> dict[Key, Row]:
        """The rows by session."""
        return {key(each): each for each in self.rows}


def key(row: Row) -> Key:
    """Return the identity of the session of *row*."""
    return row.session.pid, row.session.backend_start


@dataclass
class Sightings:
    """Every session that the looks at one target saw."""

    before: Look
    marks: dict[tuple[Mark, int], Look] = field(default_factory=dict)
    """The looks at the marks of round 1 and round 2."""
    peak: int = 0
    latest: Look = field(init=False)
    last_rows: dict[Key, Row] = field(default_factory=dict)
    stirred: set[tuple[Key, datetime | None]] = field(default_factory=set)
    """Each session with each time at which it began or ended a statement."""

    def __post_init__(self) -> None:
        self.latest = self.before
        self.add(self.before)

    def add(self, look: Look) -> None:
        """Remember *look*."""
        self.peak = max(self.peak, len(look.rows))
        self.latest = look
        for row in look.rows:
            self.last_rows[key(row)] = row
            self.stirred.add((key(row), row.session.state_change))

    def mark(self, mark: Mark, number: int, look: Look) -> None:
        """Remember *look* as the one at *mark* of round *number*."""
        self.marks[mark, number] = look
        self.add(look)

    @property
    def second_round_opened(self) -> bool:
        """Whether a session was opened in the second round."""
        rested, quiet = self.marks.get((Mark.RESTED, 1)), self.marks.get((Mark.QUIET, 2))
        if rested is None or quiet is None:
            return False
        return any(rested.at < opened(row) <= quiet.at for row in self.last_rows.values())

    def unused_since_first_round(self, longest: timedelta) -> list[Row]:
        """Return the sessions that the first round opened and that rest since.

        One that has ended meanwhile counts if it was used for at most *longest*, which is one
        request: Python's garbage collector ended it, late. None before the second round is over.
        """
        rested = self.marks.get((Mark.RESTED, 1))
        quiet, second = self.marks.get((Mark.QUIET, 1)), self.marks.get((Mark.QUIET, 2))
        if rested is None or quiet is None or second is None:
            return []
        there = self.latest.by_key
        return [
            row
            for each, row in rested.by_key.items()
            if each not in self.before.by_key
            and opened(row) <= quiet.at
            and row.session.state in _AT_REST
            and self.last_rows[each].session.state_change == row.session.state_change
            and (each in there or _used_for(row) <= longest)
        ]

    def used_again(self, longest: timedelta) -> list[Row]:
        """Return the sessions that rested and were used again, by another request.

        Of those from before the probe, only the ones that both rounds used and the rests didn't,
        and of them none of an application that did little in the rounds: it may ask now and then.
        """
        rested, quiet = self.marks.get((Mark.RESTED, 1)), self.marks.get((Mark.QUIET, 2))
        first = self.marks.get((Mark.QUIET, 1))
        if rested is None or quiet is None or first is None:
            return []
        earlier, older = rested.by_key, self.before.by_key
        in_first = self._stirred_in(self.before.at, first.at)
        in_second = self._stirred_in(rested.at, quiet.at)
        in_both = set(in_first) & set(in_second)
        work: Counter[str] = Counter()
        for each, count in (in_first + in_second).items():
            work[self.last_rows[each].session.application] += count
        least = _LEAST_WORK_SHARE * max(work.values(), default=0)
        return [
            row
            for each, row in self.latest.by_key.items()
            if (
                _stirred_at(row) > _stirred_at(earlier[each])
                if each in earlier
                else _used_for(row) > longest
            )
            and (
                each not in older
                or (
                    each in in_both
                    and _stirred_at(row) <= quiet.at
                    and work[row.session.application] >= least
                )
            )
        ]

    def once_used_in_second_round(self, longest: timedelta) -> list[Row]:
        """Return the sessions that the second round opened, one request used, and that stayed."""
        rested, quiet = self.marks.get((Mark.RESTED, 1)), self.marks.get((Mark.QUIET, 2))
        if rested is None or quiet is None:
            return []
        return [
            row
            for each, row in self.latest.by_key.items()
            if each not in rested.by_key
            and opened(row) <= quiet.at
            and row.session.state in _AT_REST
            and _used_for(row) <= longest
        ]

    def repeated_by(self, least: float, longest: timedelta) -> set[str]:
        """Return the applications whose sessions the load may have opened.

        One is the application that opened most sessions in the rounds. Of another, the second round
        has to leave *least* sessions at rest after one use of at most *longest*, as a leak does: a
        worker that connects now and then may leave some in one round by chance.
        """
        rested, quiet = self.marks.get((Mark.RESTED, 1)), self.marks.get((Mark.QUIET, 2))
        if rested is None or quiet is None:
            return set()
        older = self.before.by_key
        busiest = Counter(
            row.session.application for each, row in self.last_rows.items() if each not in older
        )
        second = Counter(
            row.session.application
            for row in self.last_rows.values()
            if rested.at < opened(row) <= quiet.at
            and row.session.state in _AT_REST
            and _used_for(row) <= longest
        )
        most = max(busiest.values(), default=0)
        return {name for name, count in busiest.items() if count == most or second[name] >= least}

    def stayed(self) -> list[Row]:
        """Return the sessions of the last look that were opened since the first."""
        older = self.before.by_key
        return [row for each, row in self.latest.by_key.items() if each not in older]

    def at_work(self) -> list[Row]:
        """Return the sessions of the last look that were opened since the first and don't rest."""
        return [row for row in self.stayed() if row.session.state not in _AT_REST]

    def opened_in_rests(self) -> list[Row]:
        """Return the sessions that were opened while the probe sent nothing."""
        spans = [(quiet.at, rested.at) for quiet, rested in self._rests()]
        return [
            row
            for row in self.last_rows.values()
            if any(start < opened(row) <= end for start, end in spans)
        ]

    def left_by_others(self) -> float:
        """Return how many sessions other traffic leaves unused in a first round's time."""
        rests = list(self._rests())
        loaded = self.marks.get((Mark.LOADED, 1))
        if not rests or loaded is None:
            return 0.0
        quiet, rested = rests[0]
        there = self.latest.by_key
        left = sum(
            quiet.at < opened(row) <= rested.at
            and each in there
            and _stirred_at(there[each]) == _stirred_at(row)
            for each, row in rested.by_key.items()
        )
        watched = (rested.at - quiet.at).total_seconds() or 1.0
        return left / watched * (quiet.at - self.before.at).total_seconds()

    @property
    def hides_use(self) -> bool:
        """Whether the server doesn't tell when sessions are used: track_activities is off."""
        return any(row.session.state is State.DISABLED for row in self.last_rows.values())

    @property
    def worked(self) -> bool:
        """Whether more work was seen in the rounds than other traffic explains."""
        loads = [(self.before.at, look.at) for look in self._at(Mark.QUIET, 1)]
        loads += [
            (rested.at, quiet.at)
            for rested in self._at(Mark.RESTED, 1)
            for quiet in self._at(Mark.QUIET, 2)
        ]
        if not loads:
            loads = [(self.before.at, self.latest.at)]
        rests = [(quiet.at, rested.at) for quiet, rested in self._rests()]
        in_loads, in_rests = self._stirs(loads), self._stirs(rests)
        if not in_rests:
            return in_loads > 0
        # Where work goes on after the answers, only the new sessions tell the load from the rests.
        opened_in_loads = sum(
            any(start < opened(row) <= end for start, end in loads)
            for row in self.last_rows.values()
        )
        ratio = 2 * _seconds(loads) / _seconds(rests)
        return in_loads >= 3 + ratio * in_rests or opened_in_loads >= 3 + ratio * len(
            self.opened_in_rests()
        )

    def _stirred_in(self, start: datetime, end: datetime) -> Counter[Key]:
        return Counter(each for each, at in self.stirred if at and start < at <= end)

    def _stirs(self, spans: Iterable[tuple[datetime, datetime]]) -> int:
        spans = list(spans)
        return sum(any(start < at <= end for start, end in spans) for _, at in self.stirred if at)

    def _rests(self) -> Iterator[tuple[Look, Look]]:
        for number in (1, 2):
            quiet = self.marks.get((Mark.QUIET, number))
            rested = self.marks.get((Mark.RESTED, number))
            if quiet and rested:
                yield quiet, rested

    def _at(self, mark: Mark, number: int) -> Iterator[Look]:
        if (mark, number) in self.marks:
            yield self.marks[mark, number]


def opened(row: Row) -> datetime:
    """Return when the session of *row* was opened, on the server's clock."""
    return row.session.backend_start or row.session.observed_at


def _stirred_at(row: Row) -> datetime:
    return row.session.state_change or row.session.observed_at


def _used_for(row: Row) -> timedelta:
    return row.used_for or timedelta(0)


def _seconds(spans: Iterable[tuple[datetime, datetime]]) -> float:
    return sum((end - start).total_seconds() for start, end in spans) or 1.0
