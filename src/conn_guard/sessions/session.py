"""A session of the server as a value, and how its state and last statement are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

CLIENT_BACKEND = "client backend"
REAPER_APPLICATION = "conn_guard:idle_reaper"
"""The application_name of the reaper's own session; other reapers spare it by this name."""
REPORT_APPLICATION = "conn_guard:report"
"""The application_name of the report's own session, which counts as a slot and nowhere else."""
PROBE_APPLICATION = "conn_guard:leak_probe"
"""The application_name of the probe's own session."""
OWN_APPLICATIONS = (REAPER_APPLICATION, REPORT_APPLICATION, PROBE_APPLICATION)
STATEMENT_BYTES = "replace(a.query, chr(92), repeat(chr(92), 2))::bytea"
"""The SQL of the bytes of a last statement; the cast takes two backslashes for one.

In a database with another encoding, sessions have texts that the server can't convert.
"""


class State(Enum):
    """The state of a session in the server's own words."""

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
        """Return the state named *text*; UNKNOWN for a word of a later server, None for None."""
        if text is None:
            return None
        try:
            return cls(text)
        except ValueError:
            return cls.UNKNOWN


IN_TRANSACTION = (State.IDLE_IN_TRANSACTION, State.IDLE_IN_TRANSACTION_ABORTED)


class LastStatement(Enum):
    """The kind of a session's last statement; the text itself is never kept."""

    OTHER = "other"
    LISTEN = "listen"
    HOLDS_STATE = "holds_state"


@dataclass(frozen=True, kw_only=True)
class Session:
    """One row of pg_stat_activity with its locks and temporary tables, on the server's clock."""

    pid: int
    backend_start: datetime | None
    backend_type: str | None
    user: str | None
    database: str | None
    application_name: str
    application: str
    """The application_name without the engine's stamp; reports and ``--keep`` group by it."""
    client: str | None
    """The client's address; None for a Unix socket."""
    state: State | None
    state_change: datetime | None
    observed_at: datetime
    """The time on the server's clock at which the row was read."""
    hidden: bool = False
    """The server masks the row, because our role may not see other roles' sessions."""
    is_self: bool = False
    is_superuser: bool = False
    may_signal: bool = True
    """Our role may signal this session's role; superusers' sessions count as permitted here."""
    in_transaction: bool = False
    waits_for_client: bool = True
    last_statement: LastStatement = LastStatement.OTHER
    holds_advisory_lock: bool = False
    holds_temp_table: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether this is a client's session in state ``idle``, and not a reaper's own."""
        return (
            self.state is State.IDLE
            and self.backend_type == CLIENT_BACKEND
            and not self.is_self
            and self.application_name not in OWN_APPLICATIONS
        )

    @property
    def in_state_for(self) -> timedelta:
        """The time in this state; zero where the server doesn't tell."""
        return self.observed_at - self.state_change if self.state_change else timedelta(0)


_COMMENTS = r"(?:\s|--[^\n]*(?:\n|$)|/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/)*"
# Texts: re compiles and keeps them at their first use, and most runs need none.
_INNERMOST_COMMENT = r"/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/"
_LISTEN = rf"(?:^|;){_COMMENTS}listen\b"
_HOLDS_STATE = rf"^{_COMMENTS}?/\* conn_guard:holds-state \*/"


def last_statement(text: str | None) -> LastStatement:
    """Return the kind of the statement *text*.

    Leading comments are skipped, nested ones too. In a string of several statements, one LISTEN
    is enough: in doubt the session is spared.
    """
    if not text:
        return LastStatement.OTHER
    if re.match(_HOLDS_STATE, text):
        return LastStatement.HOLDS_STATE
    flat = text
    while (flatter := re.sub(_INNERMOST_COMMENT, " ", flat)) != flat:
        flat = flatter
    return (
        LastStatement.LISTEN
        if any(re.search(_LISTEN, each, re.IGNORECASE) for each in (text, flat))
        else LastStatement.OTHER
    )
