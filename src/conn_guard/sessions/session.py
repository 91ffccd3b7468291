"""A session as the server shows it: this room holds the row of pg_stat_activity that everybody else
judges or prints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

CLIENT_BACKEND = "client backend"
REAPER_APPLICATION = "conn_guard:idle_reaper"
"""The application_name of the reaper's own session, by which reapers know and spare each other."""


class State(Enum):
    """What the server says that a session is doing; the values are the server's own words."""

    ACTIVE = "active"
    IDLE = "idle"
    IDLE_IN_TRANSACTION = "idle in transaction"
    IDLE_IN_TRANSACTION_ABORTED = "idle in transaction (aborted)"
    FASTPATH = "fastpath function call"
    STARTING = "starting"
    DISABLED = "disabled"
    UNKNOWN = "unknown"

    @classmethod
    def named(cls, text: str | None) -> State | None:
        """Return the state that *text* names, UNKNOWN for a word of a later server and None for a
        row without one.
        """
        if text is None:
            return None
        try:
            return cls(text)
        except ValueError:
            return cls.UNKNOWN


AT_REST_IN_TRANSACTION = (State.IDLE_IN_TRANSACTION, State.IDLE_IN_TRANSACTION_ABORTED)


class LastStatement(Enum):
    """What the text of a session's last statement tells about the session; the text itself is never
    kept.
    """

    OTHER = "other"
    LISTEN = "listen"
    HOLDS_STATE = "holds_state"


@dataclass(frozen=True, kw_only=True)
class Session:
    """One row of pg_stat_activity with what other views tell about it, all of one moment on the
    server's clock.
    """

    pid: int
    backend_start: datetime | None
    backend_type: str | None
    user: str | None
    database: str | None
    application_name: str
    application: str
    """The application_name without the engine's stamp: what reports and ``--keep`` group by."""
    client: str | None
    """The client's address; None for a Unix socket."""
    state: State | None
    state_change: datetime | None
    observed_at: datetime
    """When the server formed this row, on its own clock."""
    hidden: bool = False
    """The server masks the row: our role may not see what the session does."""
    is_self: bool = False
    is_superuser: bool = False
    may_signal: bool = True
    """Our role has the right to signal this session's role (a superuser's session aside)."""
    in_transaction: bool = False
    waits_for_client: bool = True
    last_statement: LastStatement = LastStatement.OTHER
    holds_advisory_lock: bool = False
    holds_temp_table: bool = False

    @property
    def in_state_for(self) -> timedelta:
        """How long the session has been in its state; zero where the server doesn't say."""
        return self.observed_at - self.state_change if self.state_change else timedelta(0)


_COMMENTS = r"(?:\s|--[^\n]*(?:\n|$)|/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/)*"
_INNERMOST_COMMENT = re.compile(r"/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/")
_LISTEN = re.compile(rf"(?:^|;){_COMMENTS}listen\b", re.IGNORECASE)
_HOLDS_STATE = re.compile(rf"^{_COMMENTS}?/\* conn_guard:holds-state \*/")


def last_statement(text: str | None) -> LastStatement:
    """Return what the *text* of a session's last statement tells about it.

    Leading comments are skipped, nested ones too, and each statement of a string of several counts:
    a doubt spares."""
    if not text:
        return LastStatement.OTHER
    if _HOLDS_STATE.match(text):
        return LastStatement.HOLDS_STATE
    flat = text
    while (flatter := _INNERMOST_COMMENT.sub(" ", flat)) != flat:
        flat = flatter
    return (
        LastStatement.LISTEN
        if _LISTEN.search(text) or _LISTEN.search(flat)
        else LastStatement.OTHER
    )
