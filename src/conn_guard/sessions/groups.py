"""One look at a server as a value, and its sessions in groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import cached_property

from conn_guard.sessions.census import Limits, nearest_limit
from conn_guard.sessions.policy import Policy, Verdict
from conn_guard.sessions.report import Exit, Slots
from conn_guard.sessions.session import CLIENT_BACKEND, REPORT_APPLICATION, Session, State


@dataclass(frozen=True, kw_only=True)
class Row:
    """A session in a report."""

    session: Session
    verdict: Verdict | None = None
    """The reaper's judgement; None out of its scope, and where it would refuse to run."""
    last: str = ""
    """The shape of the last statement; "" where it is hidden or unknown."""
    is_unused: bool = False
    """The session ran nothing since it was set up after its login."""
    blocked_by: tuple[int, ...] = ()
    """The pids of the sessions that this one waits for."""

    @property
    def used_for(self) -> timedelta | None:
        """The time from the login to the last statement; None if hidden."""
        if self.session.backend_start is None or self.session.state_change is None:
            return None
        return self.session.state_change - self.session.backend_start


class Field(Enum):
    """A column by which sessions are grouped; the value is its name in options and JSON."""

    APPLICATION = "application"
    USER = "user"
    DATABASE = "database"
    STATE = "state"
    CLIENT = "client"
    LAST = "last"
    PROCESS = "process"
    VIEW = "view"

    def of(self, row: Row) -> str | None:
        """Return this field of *row*; None where the session has none or hides it."""
        return _READ[self](row)


def _stamp(row: Row) -> tuple[str | None, str | None]:
    """Return the process and the view of the engine's stamp."""
    stamp = row.session.application_name[len(row.session.application) + 1 :]
    process, _, view = stamp.partition(":")
    return process or None, view or None


_READ: dict[Field, Callable[[Row], str | None]] = {
    Field.APPLICATION: lambda row: row.session.application,
    Field.USER: lambda row: row.session.user,
    Field.DATABASE: lambda row: row.session.database,
    Field.STATE: lambda row: row.session.state.value if row.session.state else None,
    Field.CLIENT: lambda row: row.session.client,
    Field.LAST: lambda row: row.last or None,
    Field.PROCESS: lambda row: _stamp(row)[0],
    Field.VIEW: lambda row: _stamp(row)[1],
}

DEFAULT_BY = (Field.APPLICATION, Field.USER, Field.DATABASE, Field.STATE)


@dataclass(frozen=True)
class Group:
    """The sessions that are equal in each field of *key*."""

    key: Mapping[Field, str | None]
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def longest(self) -> timedelta | None:
        """The longest time that one of the sessions is in its state; None if all hide it."""
        times = (each.session.in_state_for for each in self.rows if each.session.state_change)
        return max(times, default=None)

    @cached_property
    def lasts(self) -> list[tuple[str, int]]:
        """The shapes of the last statements and their numbers, the most frequent first."""
        return Counter(each.last for each in self.rows if each.last).most_common()

    @property
    def last(self) -> str:
        """The most frequent shape of a last statement; "" if all are hidden or unknown."""
        return self.lasts[0][0] if self.lasts else ""

    @property
    def would_end(self) -> int:
        """The number of sessions that idle_reaper would end now."""
        return would_end(self.rows)

    @property
    def spared(self) -> dict[str, int]:
        """The number of sessions that are due and would be spared, by reason."""
        return spared(self.rows)


@dataclass(frozen=True)
class Finding:
    """A system check that holds here: its id without ``conn_guard.``, message and hint."""

    id: str
    message: str
    hint: str


@dataclass(frozen=True)
class Setting:
    """A setting of the server as it holds for the login role; *unit* is "" for a count."""

    value: int
    unit: str

    def __str__(self) -> str:
        return f"{self.value}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One look at the whole server of an alias; the judge's scope is in *policy*."""

    alias: str
    address: str = ""
    server_version: str = ""
    observed_at: datetime | None = None
    """The time on the server's clock."""
    policy: Policy
    rows: Sequence[Row] = ()
    """The sessions of clients, and those of any kind in scope; none of a report's own."""
    census: Mapping[str, tuple[int, float]] | None = None
    """As in a reaper's report."""
    limits: Limits | None = None
    slots: Slots | None = None
    """The fullest limit."""
    slots_limit: str = "server"
    """The kind of the fullest limit: server, role or database."""
    held_by_role: Mapping[str, int] | None = None
    """The number of slots that each role holds."""
    refusal: str = ""
    """The reason why idle_reaper would refuse these options; "" if it would run."""
    grant: str = ""
    """The SQL that lets the login role see, or signal, what it may not; "" if it may."""
    is_superuser: bool = False
    """The alias's own role is a superuser."""
    settings: Mapping[str, Setting] | None = None
    findings: Sequence[Finding] = ()
    fail_above: float | None = None
    """Percent of the fullest limit above which the exit code is 3."""
    seconds: float = 0.0
    notes: Sequence[str] = ()
    """Lines for stderr."""
    mirror_of: str | None = None
    """The alias of the same server, database and role that was reported instead."""
    failure: str | None = None
    failed_with: Exit = Exit.DONE

    @property
    def hidden(self) -> int:
        """The number of sessions whose state the login role may not see."""
        return sum(each.session.hidden for each in self.rows)

    @property
    def would_end(self) -> int:
        """The number of sessions that idle_reaper would end now."""
        return would_end(self.rows)

    @property
    def spared(self) -> dict[str, int]:
        """The number of sessions that are due and would be spared, by reason."""
        return spared(self.rows)

    @property
    def exit_code(self) -> Exit:
        """The exit code of this alias."""
        if self.failure is not None:
            return self.failed_with
        is_above = (
            self.fail_above is not None
            and self.slots is not None
            and self.slots.percent > self.fail_above
        )
        return Exit.PARTIAL if is_above else Exit.DONE


def belongs(session: Session, *, in_scope: bool) -> bool:
    """Return whether a report shows *session*: a client's, a hidden one, or one in scope."""
    if session.application_name == REPORT_APPLICATION or session.is_self:
        return False
    is_client = session.backend_type == CLIENT_BACKEND or session.hidden
    return in_scope or (is_client and session.database is not None)


def grouped(rows: Iterable[Row], by: Sequence[Field] = DEFAULT_BY) -> list[Group]:
    """Return *rows* in groups that are equal in the fields *by*, the largest group first."""
    members: dict[tuple[str | None, ...], list[Row]] = {}
    reads = [_READ[field] for field in by]
    for row in rows:
        members.setdefault(tuple([read(row) for read in reads]), []).append(row)
    groups = [Group(dict(zip(by, key, strict=True)), found) for key, found in members.items()]
    return sorted(
        groups, key=lambda each: (-len(each), [value or "" for value in each.key.values()])
    )


def would_end(rows: Iterable[Row]) -> int:
    """Return how many of *rows* idle_reaper would end now."""
    return sum(each.verdict is Verdict.REAP for each in rows)


def spared(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many of *rows* idle_reaper would spare although they are due, by reason."""
    reasons = Counter(each.verdict.value for each in rows if each.verdict and each.verdict.spares)
    return dict(sorted(reasons.items()))


def limit_kind(sessions: Sequence[Session], policy: Policy, limits: Limits, fullest: Slots) -> str:
    """Return which of *limits* is the *fullest*: ``server``, ``role`` or ``database``."""
    for kind, fewer in (
        ("server", Limits(server=limits.server, database=None, roles={})),
        ("role", Limits(server=limits.server, database=None, roles=limits.roles)),
    ):
        if nearest_limit(sessions, policy, fewer) == fullest:
            return kind
    return "database"


def is_in_transaction(row: Row) -> bool:
    """Return whether the session is idle in a transaction, aborted or not."""
    return row.session.state in (State.IDLE_IN_TRANSACTION, State.IDLE_IN_TRANSACTION_ABORTED)
