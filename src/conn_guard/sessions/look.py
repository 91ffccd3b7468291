"""Looks at the whole server of an alias on a session of its own, without signals and locks."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from django.db import Error

from conn_guard.sessions.census import by_state, judge_all, nearest_limit
from conn_guard.sessions.groups import Row, Setting, Snapshot, belongs, limit_kind
from conn_guard.sessions.login import LostError, OwnSession, Places, error_text
from conn_guard.sessions.parallel import side_by_side
from conn_guard.sessions.policy import Policy, Verdict
from conn_guard.sessions.report import Exit, RunError
from conn_guard.sessions.scope import grant, identity, missing_rights, scope
from conn_guard.sessions.server import ServerClient
from conn_guard.sessions.session import (
    CLIENT_BACKEND,
    REPORT_APPLICATION,
    STATEMENT_BYTES,
    Session,
)
from conn_guard.sessions.shape import MOST_CHARACTERS, shape
from conn_guard.sessions.stop import Stop

logger = logging.getLogger("conn_guard.report")

# The text is read for its shape alone, and dropped. It is read as bytes: in a database with another
# encoding, sessions have texts that our driver can't decode. The server keeps
# track_activity_query_size bytes; a multi-byte character at the end may leave four of them unused.
# set_config is what Django sends after a login: a session that ended with it was opened, by a pool
# for example, and not used.
LAST_STATEMENTS = f"""
SELECT a.pid,
       substring({STATEMENT_BYTES} FROM 1 FOR %(most)s) AS query,
       octet_length(a.query) >= s.setting::int - 5 AS is_cut,
       a.query ~* '^[[:space:]]*select[[:space:]]+(pg_catalog[.])?set_config[[:space:]]*[(]'
           AS is_unused,
       pg_encoding_to_char(d.encoding) AS encoding
FROM pg_stat_activity a LEFT JOIN pg_database d ON d.oid = a.datid, pg_settings s
WHERE a.backend_type = 'client backend' AND s.name = 'track_activity_query_size'
"""  # noqa: S608 - the part that is put in is a constant

# pg_blocking_pids locks the server's table of locks for a moment: only sessions that wait are asked
# about, and no more than a hundred.
BLOCKED = """
SELECT w.pid, pg_blocking_pids(w.pid) AS blockers
FROM (SELECT DISTINCT pid FROM pg_locks WHERE NOT granted AND pid IS NOT NULL LIMIT 100) AS w
"""

# reset_val is the value at login; our own session has changed its timeouts since.
SETTINGS = """
SELECT name, reset_val::bigint AS value, coalesce(unit, '') AS unit
FROM pg_settings
WHERE vartype = 'integer' AND name IN (
    'client_connection_check_interval', 'idle_in_transaction_session_timeout',
    'idle_session_timeout', 'max_connections', 'rds.rds_superuser_reserved_connections',
    'reserved_connections', 'statement_timeout', 'superuser_reserved_connections',
    'transaction_timeout')
ORDER BY name
"""


class Observer(ServerClient):
    """Looks for one alias, as often as it is asked to; close() ends its own session."""

    def __init__(
        self,
        alias: str,
        policy: Policy,
        *,
        pooled: bool = False,
        application_name: str = REPORT_APPLICATION,
        stop: Stop | None = None,
        tell: Callable[[str], None] | None = None,
        connect_for: timedelta | None = None,
        in_project: bool = True,
    ) -> None:
        """*pooled* says that the project declared a pooler in session mode; *tell* gets lines.

        Only a login that fails is told: everything else is in the snapshot.
        """
        super().__init__(
            alias,
            pooled=pooled,
            application_name=application_name,
            stop=stop,
            tell=tell,
            connect_for=connect_for,
            users=policy.users,
            in_project=in_project,
        )
        self._policy = policy

    def look(self, *, places: Places | None = None) -> Snapshot:
        """Look once and return the snapshot, also of a failure.

        Of the aliases that share *places*, each place is looked at once.
        """
        started = time.monotonic()
        snapshot = Snapshot(alias=self.alias, policy=self._policy)
        try:
            snapshot = self._look(snapshot, places or Places())
        except RunError as error:
            snapshot = replace(snapshot, failure=str(error), failed_with=error.exit_code)
        except LostError as error:
            text = error_text(error, self.alias)
            failure = f"{self.alias}: the report's own session ended: {text}"
            snapshot = replace(snapshot, failure=failure, failed_with=Exit.UNREACHABLE)
        except Exception as error:
            logger.debug("The look at %s failed.", self.alias, exc_info=True)
            text = error_text(error, self.alias)
            failure = f"{self.alias}: unexpected {type(error).__name__}: {text}"
            snapshot = replace(snapshot, failure=failure, failed_with=Exit.UNEXPECTED)
        if snapshot.failure is not None:
            self.close()
        return replace(snapshot, seconds=time.monotonic() - started)

    def _look(self, snapshot: Snapshot, places: Places) -> Snapshot:
        server = self.server()
        session = server.session
        snapshot = replace(snapshot, address=session.address)
        if (first := places.first(identity(session, self.alias), self.alias)) != self.alias:
            note = f"{self.alias} leads to the same place as {first}: reported once"
            return replace(snapshot, mirror_of=first, notes=[note])
        policy = scope(session, self.alias, self._policy)
        sessions = server.list_sessions()
        statements = session.rows(LAST_STATEMENTS, {"most": MOST_CHARACTERS + 1})
        lasts = {
            row["pid"]: shape(_decoded(row["query"], row["encoding"]), is_cut=row["is_cut"])
            for row in statements
        }
        unused = {row["pid"] for row in statements if row["is_unused"]}
        limits = server.limits()
        slots = nearest_limit(sessions, policy, limits)
        refusal, rights = missing_rights(sessions, policy)
        hides = any(each.hidden and belongs(each, in_scope=False) for each in sessions)
        needed = ["pg_read_all_stats"] * hides + [
            right for right in rights if right != "pg_read_all_stats" or not hides
        ]
        verdicts = (
            {}
            if refusal
            else {session.pid: verdict for session, verdict in judge_all(sessions, policy)}
        )
        return replace(
            snapshot,
            server_version=f"{session.version_num // 10000}.{session.version_num % 10000}",
            observed_at=max((each.observed_at for each in sessions), default=None),
            policy=policy,
            rows=list(_rows(sessions, policy, verdicts, lasts, unused, self._blocked(session))),
            census=by_state(sessions),
            limits=limits,
            slots=slots,
            slots_limit=limit_kind(sessions, policy, limits, slots),
            held_by_role=Counter(
                each.user or ""
                for each in sessions
                if each.database and each.backend_type == CLIENT_BACKEND
            ),
            refusal=refusal,
            grant=grant(server, needed) if needed else "",
            is_superuser=session.is_superuser,
            settings={
                row["name"]: Setting(row["value"], row["unit"]) for row in session.rows(SETTINGS)
            },
        )

    def _blocked(self, session: OwnSession) -> dict[int, tuple[int, ...]]:
        try:
            return {row["pid"]: tuple(row["blockers"]) for row in session.rows(BLOCKED)}
        except Error:  # a busy table of locks, and our statement_timeout
            logger.warning("%s: it could not be asked which sessions wait.", self.alias)
            return {}


def _decoded(text: bytes | memoryview | None, encoding: str | None) -> str:
    """Return a statement's *text*; *encoding* is its database's in PostgreSQL's words."""
    read = bytes(text or b"")
    try:
        return read.decode((encoding or "UTF8").replace("WIN", "cp"), errors="replace")
    except LookupError:  # an encoding that Python has by another name, or not at all
        return read.decode(errors="replace")


def look_at_all(observers: Sequence[Observer], *, stop: Stop) -> Iterator[Snapshot]:
    """Look once with each of *observers*, side by side, and yield the snapshots in their order.

    The same place is looked at once.
    """
    places = Places()
    yield from side_by_side(observers, lambda observer: observer.look(places=places), stop=stop)


def _rows(
    sessions: Iterable[Session],
    policy: Policy,
    verdicts: Mapping[int, Verdict],
    lasts: Mapping[int, str],
    unused: Collection[int],
    blocked: Mapping[int, tuple[int, ...]],
) -> Iterator[Row]:
    for session in sessions:
        if belongs(session, in_scope=policy.covers(session)):
            yield Row(
                session=session,
                verdict=verdicts.get(session.pid),
                last=lasts.get(session.pid, ""),
                is_unused=session.pid in unused,
                blocked_by=blocked.get(session.pid, ()),
            )
