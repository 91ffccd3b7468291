"""The contents of the page: filters, order, groups, sessions, and verdicts in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from conn_guard.sessions.groups import Group, Row, Snapshot, grouped
from conn_guard.sessions.policy import Verdict
from conn_guard.sessions.report import Slots
from conn_guard.sessions.session import Session
from conn_guard.text import duration, printable

GROUPS_SHOWN = 50
"""The largest groups have a line each; the others share one."""
NO_APPLICATION = "(no application_name)"
NO_STATE = "hidden or unknown"
OUT_OF_SCOPE = "not of this alias's role and database"
WORDS = {
    Verdict.REAP: "would be ended",
    Verdict.ACTIVE: "in use",
    Verdict.TOO_YOUNG: "not idle for long enough",
    Verdict.SELF: "this page's own session",
    Verdict.REAPER: "a session of conn_guard",
    Verdict.BACKEND_TYPE: "not a client's session",
    Verdict.SUPERUSER: "a superuser's session",
    Verdict.PROTECTED_APPLICATION: "its application is in PROTECTED_APPLICATIONS",
    Verdict.EXCLUDED: "excluded",
    Verdict.ADVISORY_LOCK: "holds an advisory lock",
    Verdict.LISTEN: "its last statement was LISTEN",
    Verdict.HOLDS_STATE: "holds state that a new session would lack",
    Verdict.TEMP_TABLE: "has a temporary table",
    Verdict.IDLE_IN_TRANSACTION: (
        "idle in a transaction, which REAP_IDLE_IN_TRANSACTION_FOR doesn't end"
    ),
    Verdict.TRACK_ACTIVITIES_OFF: "its state is unknown, because track_activities is off",
    Verdict.KEEP: "among the most recently used",
    Verdict.MAX: "above the limit of signals",
    Verdict.MOVED_ON: "was used in the meantime",
}
NOT_IN_SCOPE = "not_in_scope"
NOT_TRIED = "not_tried"
_REASONS = {
    **{verdict.value: words for verdict, words in WORDS.items()},
    NOT_IN_SCOPE: OUT_OF_SCOPE,
    NOT_TRIED: "the page's own session had ended",
    "permission_denied": "the server refused the signal",
    "statement_timeout": "the server did not answer in time",
    "connection_lost": "the answer was lost, so it may have been signalled",
    "error": "the server reported an error",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)

Identity = tuple[int, datetime | None]
"""The pid and backend_start of a session; the pid alone may belong to another one later."""


def identity(session: Session) -> Identity:
    """Return the pid and backend_start of *session*."""
    return session.pid, session.backend_start


def reason(slug: str | None) -> str:
    """Return the words for the reason *slug* of an outcome."""
    return _REASONS.get(slug or "", (slug or "").replace("_", " "))


def token(session: Session) -> str:
    """Return *session* as a form names it: pid, backend_start and state_change in µs."""
    return f"{session.pid}:{_micros(session.backend_start)}:{_micros(session.state_change)}"


def read_tokens(texts: Iterable[str]) -> dict[Identity, datetime | None]:
    """Return the state_change of each session that *texts* name; raise ValueError for others.

    A text has any number of tokens, with blanks between them.
    """
    named: dict[Identity, datetime | None] = {}
    for each in (word for text in texts for word in text.split()):
        pid, *times = each.split(":")
        backend_start, state_change = (_instant(time) for time in times)
        named[int(pid), backend_start] = state_change
    return named


def _micros(instant: datetime | None) -> str:
    return "" if instant is None else str((instant - _EPOCH) // _MICROSECOND)


def _instant(text: str) -> datetime | None:
    try:
        return _EPOCH + int(text) * _MICROSECOND if text else None
    except OverflowError as error:
        raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Line:
    """A session as a line of a table."""

    row: Row
    snapshot: Snapshot

    @property
    def token(self) -> str:
        """The session as a form names it."""
        return token(self.row.session)

    @property
    def pid(self) -> str:
        """The pid, as a text that no template writes with a separator of thousands."""
        return str(self.row.session.pid)

    @property
    def application(self) -> str:
        """The whole application_name."""
        return printable(self.row.session.application_name)

    @property
    def user(self) -> str:
        """The role that logged in."""
        return printable(self.row.session.user or "")

    @property
    def database(self) -> str:
        """The database."""
        return printable(self.row.session.database or "")

    @property
    def client(self) -> str:
        """The client's address."""
        session = self.row.session
        return session.client or ("" if session.hidden else "local")

    @property
    def state(self) -> str:
        """The state in the server's words."""
        return _state(self.row)

    @property
    def last(self) -> str:
        """The shape of the last statement."""
        return self.row.last

    @property
    def seconds(self) -> float:
        """The seconds in this state; -1 where they are hidden."""
        session = self.row.session
        return max(0.0, session.in_state_for.total_seconds()) if session.state_change else -1.0

    @property
    def age(self) -> str:
        """The time for which the session has been in its state."""
        return duration(self.seconds) if self.seconds >= 0 else ""

    @property
    def is_due(self) -> bool:
        """Whether the session would be ended."""
        return self.row.verdict is Verdict.REAP

    @property
    def slug(self) -> str:
        """The verdict's name in JSON and metrics; "" for a session that was not judged."""
        return self.row.verdict.value if self.row.verdict else ""

    @property
    def words(self) -> str:
        """The verdict in words."""
        return _words(self.row.verdict, self.snapshot)


def _application(row: Row) -> str:
    return row.session.application or NO_APPLICATION


def _state(row: Row) -> str:
    return row.session.state.value if row.session.state else NO_STATE


def _words(verdict: Verdict | None, snapshot: Snapshot) -> str:
    if verdict is None:
        return "not judged" if snapshot.refusal else OUT_OF_SCOPE
    return WORDS[verdict]


_COLUMNS: dict[str, tuple[str, Callable[[Line], Any]]] = {
    "pid": ("PID", lambda line: line.row.session.pid),
    "state": ("State", lambda line: line.state),
    "application": ("Application", lambda line: line.application.casefold()),
    "role": ("Role", lambda line: line.user.casefold()),
    "database": ("Database", lambda line: line.database.casefold()),
    "client": ("Client", lambda line: line.client),
    "last": ("Last statement", lambda line: line.last.casefold()),
    "for": ("For", lambda line: line.seconds),
    "reaper": ("Reaper", lambda line: (not line.is_due, line.words)),
}
USUAL_ORDER = "-for"


@dataclass(frozen=True)
class Column:
    """The title of a column with a link that sorts by it."""

    title: str
    query: str
    direction: str
    """``ascending``, ``descending``, or "" where another column decides the order."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The filters and the order of a request; "" shows every application or state."""

    alias: str
    application: str = ""
    state: str = ""
    order: str = USUAL_ORDER
    page: str = "1"

    @classmethod
    def of(cls, given: Mapping[str, str], usual_alias: str) -> Choice:
        """Return the choice in the parameters *given* of an address; others are ignored."""
        order = given.get("o", USUAL_ORDER)
        return cls(
            alias=given.get("alias") or usual_alias,
            application=given.get("application", ""),
            state=given.get("state", ""),
            order=order if order.removeprefix("-") in _COLUMNS else USUAL_ORDER,
            page=given.get("p", "1"),
        )

    def query(self, **changes: Any) -> str:
        """Return the query of the address that shows this choice with *changes*."""
        choice = replace(self, **changes)
        known = {
            "alias": choice.alias,
            "application": choice.application,
            "state": choice.state,
            "o": choice.order if choice.order != USUAL_ORDER else "",
            "p": choice.page if choice.page != "1" else "",
        }
        return "?" + urlencode({key: value for key, value in known.items() if value})

    def shows(self, row: Row) -> bool:
        """Return whether the filters let *row* through."""
        return self.application in ("", _application(row)) and self.state in ("", _state(row))

    def ordered(self, lines: Iterable[Line]) -> list[Line]:
        """Return *lines* in this order; lines that are equal in it are in the usual order."""
        usual = sorted(lines, key=lambda line: -line.seconds)
        name = self.order.removeprefix("-")
        return sorted(usual, key=_COLUMNS[name][1], reverse=self.order != name)

    @property
    def columns(self) -> list[Column]:
        """The columns; a link sorts by its column, and the second time the other way round."""
        return [
            Column(title, *self._sorting(name, first="-for" if name == "for" else name))
            for name, (title, _) in _COLUMNS.items()
        ]

    def _sorting(self, name: str, *, first: str) -> tuple[str, str]:
        is_sorted = self.order.removeprefix("-") == name
        falls = self.order.startswith("-")
        again = name if falls else f"-{name}"
        now = ("descending" if falls else "ascending") if is_sorted else ""
        return self.query(order=again if is_sorted else first, page="1"), now


@dataclass(frozen=True)
class GroupLine:
    """A group of sessions as a line of a table."""

    group: Group
    snapshot: Snapshot
    choice: Choice

    @property
    def query(self) -> str:
        """The query of the address that shows the sessions of this application and state."""
        first = self.group.rows[0]
        return self.choice.query(application=_application(first), state=_state(first), page="1")

    @property
    def first(self) -> Line:
        """One of the sessions, for the names that all of them have."""
        return Line(self.group.rows[0], self.snapshot)

    @property
    def application(self) -> str:
        """The application_name without the engine's stamp."""
        return printable(_application(self.group.rows[0]))

    @property
    def longest(self) -> str:
        """The longest time that one of the sessions is in its state."""
        longest = self.group.longest
        return "" if longest is None else duration(max(0.0, longest.total_seconds()))

    @cached_property
    def tokens(self) -> str:
        """The sessions as a form names them."""
        return " ".join(token(each.session) for each in self.group.rows)

    @property
    def verdicts(self) -> list[tuple[int, str]]:
        """The number of sessions for each verdict other than the one that ends them."""
        counts: dict[Verdict | None, int] = {}
        for each in self.group.rows:
            if each.verdict is not Verdict.REAP:
                counts[each.verdict] = counts.get(each.verdict, 0) + 1
        return [(count, _words(verdict, self.snapshot)) for verdict, count in counts.items()]


@dataclass(frozen=True)
class Page:
    """The part of a snapshot that a choice shows."""

    snapshot: Snapshot
    choice: Choice

    @cached_property
    def lines(self) -> list[Line]:
        """The sessions that the filters let through, in the chosen order."""
        return self.choice.ordered(Line(each, self.snapshot) for each in self._rows)

    @cached_property
    def groups(self) -> list[GroupLine]:
        """The largest groups of these sessions."""
        return [GroupLine(each, self.snapshot, self.choice) for each in self._groups[:GROUPS_SHOWN]]

    @property
    def smaller(self) -> tuple[int, int] | None:
        """The number of the other groups and of their sessions."""
        rest = self._groups[GROUPS_SHOWN:]
        return (len(rest), sum(map(len, rest))) if rest else None

    @cached_property
    def applications(self) -> list[str]:
        """The applications to choose from."""
        return sorted({*map(_application, self.snapshot.rows), self.choice.application} - {""})

    @cached_property
    def states(self) -> list[str]:
        """The states to choose from."""
        return sorted({*map(_state, self.snapshot.rows), self.choice.state} - {""})

    @cached_property
    def slots(self) -> Mapping[str, str]:
        """The slots in words, and how full the bar is in percent."""
        slots = self.snapshot.slots or Slots(0, 0, exact=True)
        bound = "" if slots.exact else "at most "
        limit = {
            "server": "the server's slots",
            "role": "the slots of the role's CONNECTION LIMIT",
            "database": "the slots of the database's CONNECTION LIMIT",
        }[self.snapshot.slots_limit]
        percent = min(100.0, slots.percent)
        return {
            "words": f"{bound}{slots.used} of {slots.total} of {limit} are taken",
            "percent": f"{percent:.0f}",
            "level": "full" if percent >= 95 else "short" if percent >= 80 else "free",
        }

    @property
    def due_after(self) -> str:
        """The time for which a session has to be idle before it is due."""
        return duration(self.snapshot.policy.idle_for.total_seconds())

    @cached_property
    def _rows(self) -> Sequence[Row]:
        return [each for each in self.snapshot.rows if self.choice.shows(each)]

    @cached_property
    def _groups(self) -> list[Group]:
        return grouped(self._rows)
