"""Every SQL statement of ours and the reaper's own session: this room holds all that is ever sent
to a server.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from django.db import Error, NotSupportedError
from django.db.utils import load_backend

from conn_guard.sessions.census import Limits
from conn_guard.sessions.login import LostError, PooledError, TooOldError, connect, own_settings
from conn_guard.sessions.session import Session, State, last_statement
from conn_guard.sessions.stamp import unstamped

logger = logging.getLogger("conn_guard.postgres")

# libpq invents nothing: the pid of the server that answered the log-in. A pooler gives its clients
# a pid of its own, so a difference means that this is no session of ours alone, and whatever we SET
# or lock would stay on somebody else's.
BACKEND_PID = "SELECT pg_catalog.pg_backend_pid()"

# search_path: nobody's function may stand before the catalogue's, not even before this statement's
# own. role: an ALTER ROLE ... SET role would mask the sessions of whoever logged in. Timeouts: a
# reaper that hangs holds the lock against the next one. idle_session_timeout: --every must outlive
# the very setting that we recommend. TimeZone and DateStyle need no value, because instants travel
# as whole microseconds.
PREPARE = """
SELECT pg_catalog.set_config('search_path', 'pg_catalog', false),
       pg_catalog.set_config('role', 'none', false),
       pg_catalog.set_config('statement_timeout', '10s', false),
       pg_catalog.set_config('lock_timeout', '5s', false),
       pg_catalog.set_config('idle_in_transaction_session_timeout', '10s', false),
       pg_catalog.set_config('idle_session_timeout', '0', false),
       pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', false),
       pg_catalog.set_config('conn_guard.sent', '', false)
"""

# session_user, not current_user: whoever logged in is who the sessions of the application belong
# to.
IDENTITY = """
SELECT session_user::text, current_database()::text, current_setting('server_version_num')::int,
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user),
       (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
"""

# In a statement of its own: some providers revoke the function, and the error must cost nothing but
# the number.
SYSTEM_IDENTIFIER = "SELECT system_identifier FROM pg_control_system()"

# One read, all rows that belong to a database or a role. Instants leave as whole microseconds, so
# that no driver, no time zone and no USE_TZ can change the value that SIGNAL compares. The query's
# text leaves only where it may say LISTEN or carry our mark, and goes no further than
# last_statement(). pg_has_role(..., 'USAGE') is the test that the server itself makes before it
# signals.
LIST = """
SELECT a.pid,
       (extract(epoch FROM a.backend_start) * 1000000)::bigint,
       a.backend_type,
       a.usename::text,
       a.datname::text,
       coalesce(a.application_name, ''),
       host(a.client_addr),
       a.state,
       (extract(epoch FROM a.state_change) * 1000000)::bigint,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
       a.backend_type IS NULL,
       a.pid = pg_backend_pid(),
       coalesce(r.rolsuper, false),
       pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'),
       a.xact_start IS NOT NULL OR a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL,
       coalesce(a.wait_event_type = 'Client' AND a.wait_event = 'ClientRead', false),
       CASE WHEN a.query ~* 'listen|conn_guard:holds-state' THEN a.query END
FROM pg_stat_activity a
LEFT JOIN pg_roles r ON r.oid = a.usesysid
WHERE a.datid IS NOT NULL OR a.usesysid IS NOT NULL
ORDER BY a.state_change NULLS LAST, a.pid
"""

# Read after LIST: whoever takes a lock in between moves its state_change and is spared by SIGNAL.
# No other kind of lock is a sign of use: a committed serializable reader at rest still shows
# SIReadLock.
ADVISORY_LOCK_HOLDERS = (
    "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid IS NOT NULL"
)

# From 16 on, and of this database only; 14 names the wrong pid here and 15 none. The schema
# pg_temp_N outlives its session, so a relation in it is the proof.
TEMP_TABLE_HOLDERS = """
SELECT DISTINCT pg_stat_get_backend_pid(b)
FROM pg_stat_get_backend_idset() AS b
JOIN pg_namespace n ON n.nspname = 'pg_temp_' || b
JOIN pg_class c ON c.relnamespace = n.oid AND c.relpersistence = 't'
"""

# One victim, in a transaction of its own. (pid, backend_start) says which session we judged: a pid
# alone may belong to somebody else by now. An unchanged state_change says that it has not stirred
# since. wait_event is the one column that is read live, so it catches a session that woke after the
# row was cached. The function with a pid, not the view: the view forms every row before the first
# signal is sent. Prepared in SQL, which is the same for both drivers, because parsing and planning
# would cost more than the look itself. Whether the signal was sent is noted in a setting of our
# session, which is kept by each commit, so that a refusal further on can't take it away.
PREPARE_SIGNAL = """
PREPARE conn_guard_signal (int, bigint, bigint, text) AS
SELECT set_config('conn_guard.sent', current_setting('conn_guard.sent') || CASE WHEN (
    SELECT pg_terminate_backend(a.pid)
    FROM pg_stat_get_activity($1) AS a
    WHERE a.pid <> pg_backend_pid()
      AND a.backend_type = 'client backend'
      AND a.backend_start = timestamptz 'epoch' + $2 * interval '1 microsecond'
      AND a.state_change = timestamptz 'epoch' + $3 * interval '1 microsecond'
      AND a.state = $4
      AND (a.state <> 'idle' OR a.xact_start IS NULL AND a.backend_xid IS NULL
           AND a.backend_xmin IS NULL)
      AND a.wait_event_type = 'Client' AND a.wait_event = 'ClientRead'
) THEN 'y' ELSE 'n' END, false)
"""
# The explicit transaction is what ends the cached copy of all rows, also where one message holds
# several of these.
SIGNAL = "; BEGIN; EXECUTE conn_guard_signal (%s, %s, %s, %s); COMMIT"
# The note begins with the number of its message: one that was refused before it could begin would
# show the last one's.
BEGIN_NOTE = "BEGIN; SELECT set_config('conn_guard.sent', %s, false); COMMIT"
READ_NOTE = "SELECT current_setting('conn_guard.sent')"
ROLLBACK = "ROLLBACK"

SIGNALS_A_MESSAGE = 1
"""Victims that share one round trip. More are faster, and die at the same time: then their clients
go on sending to sessions that have no processor yet to say goodbye. Three took three quarters of
the time and cost three times the errors."""

STILL_THERE = """
SELECT a.pid, (extract(epoch FROM a.backend_start) * 1000000)::bigint
FROM pg_stat_activity a
WHERE a.pid = ANY(%(pids)s::int[])
"""

# Of the session, never of a transaction: a transaction-level lock would hold a snapshot open and
# void SIGNAL's re-check.
TRY_LOCK = "SELECT pg_try_advisory_lock(%(key)s::int, %(scope)s::int)"
LOCK_HOLDER = """
SELECT l.pid, extract(epoch FROM clock_timestamp() - a.backend_start)::float8
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
  AND l.classid::bigint = %(key)s::bigint AND l.objid::bigint = %(scope)s::bigint & 4294967295
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
LIMIT 1
"""

# A pooler in session mode keeps the session when we leave it, with our lock and our settings where
# it was told to reset none.
DISCARD = "DISCARD ALL"

# max_connections less what an application can't have. current_setting with true: NULL where the
# server lacks the setting (reserved_connections before 16, RDS's own anywhere else).
SLOTS = """
SELECT current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0)
       - coalesce(current_setting('rds.rds_superuser_reserved_connections', true)::int, 0),
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
"""
ROLE_LIMITS = (
    "SELECT rolname::text, rolconnlimit FROM pg_roles WHERE rolconnlimit >= 0 AND NOT rolsuper"
)

# A role that is NOINHERIT, or a member WITH INHERIT FALSE, is granted a right and still doesn't
# have it.
INHERITS = """
SELECT (SELECT rolinherit FROM pg_roles WHERE rolname = session_user)
   AND NOT EXISTS (SELECT FROM unnest(ARRAY['pg_read_all_stats', 'pg_signal_backend']) AS granted
                   WHERE pg_has_role(granted, 'MEMBER') AND NOT pg_has_role(granted, 'USAGE'))
"""

LOCK_KEY = 0x636F6E67
"""The first half of the advisory lock's key; the second is a hash of the scope."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


class InTransactionError(Exception):
    """A guarded signal was asked for inside a transaction, where the server would re-check a stale
    copy.
    """


@dataclass(frozen=True)
class Identity:
    """Which server, database and login role a session belongs to; equal for two aliases that lead
    to the same place.
    """

    system_identifier: int | None
    started_us: int
    login_role: str
    database: str


class Server:
    """A PostgreSQL server as the reaper's one session sees it; use it from one thread and close
    it.
    """

    def __init__(self, alias: str, *, pooled: bool = False) -> None:
        """Open a session for *alias*; *pooled* says that the project declared a pooler in session
        mode.
        """
        self._connection = connect(alias)
        self._is_pooled = False
        self._messages = 0
        try:
            self._refuse_pooler(pooled=pooled)
            if self._connection.pg_version < 140000:
                raise TooOldError
            self._row(PREPARE)
            self._run(PREPARE_SIGNAL)
            self.login_role, self.database, self.version_num, self.is_superuser, started_us = (
                self._row(IDENTITY)
            )
            self.identity = Identity(
                self._system_identifier(), started_us, self.login_role, self.database
            )
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """``role@host:port/database`` of this session; no password and no other part of a DSN."""
        info = self._connection.connection.info
        host = f"[{info.host}]" if ":" in (info.host or "") else info.host or "local"
        return f"{self.login_role}@{host}:{info.port}/{self.database}"

    def list_sessions(self) -> list[Session]:
        """Return every session of the server, the longest at rest first."""
        sessions = [_session(row) for row in self._rows(LIST)]
        lock_holders = {pid for (pid,) in self._rows(ADVISORY_LOCK_HOLDERS)}
        temp_holders = (
            {pid for (pid,) in self._rows(TEMP_TABLE_HOLDERS)}
            if self.version_num >= 160000
            else set()
        )
        return [
            (
                replace(
                    each,
                    holds_advisory_lock=each.pid in lock_holders,
                    holds_temp_table=each.pid in temp_holders,
                )
                if each.pid in lock_holders or each.pid in temp_holders
                else each
            )
            for each in sessions
        ]

    def signal(self, sessions: Sequence[Session]) -> list[bool | Error]:
        """End those of *sessions* that still rest as they were listed.

        Returns for each whether a signal was sent, or the error with which the server refused.
        Raises InTransactionError in an atomic block, and LostError where our own session ended."""
        if self._connection.in_atomic_block or not self._connection.get_autocommit():
            raise InTransactionError(
                "A session is signalled in a transaction of its own, never inside an atomic block."
            )
        answers: list[bool | Error] = []
        while len(answers) < len(sessions):
            answers += self._signal(sessions[len(answers) :][:SIGNALS_A_MESSAGE])
        return answers

    def _signal(self, sessions: Sequence[Session]) -> list[bool | Error]:
        """Signal *sessions* in one message, and return the answers up to the first refusal."""
        self._messages += 1
        note = f"{self._messages}:"
        parameters = [
            note,
            *(value for session in sessions for value in _signal_parameters(session)),
        ]
        refused: list[bool | Error] = []
        try:
            (told,) = self._row(f"{BEGIN_NOTE}{SIGNAL * len(sessions)}; {READ_NOTE}", parameters)
        except Error as error:
            self._run(ROLLBACK)
            refused = [error]
            (told,) = self._row(READ_NOTE)
        return [*(answer == "y" for answer in told[len(note) :] if told.startswith(note)), *refused]

    def still_there(self, sessions: Iterable[Session]) -> list[Session]:
        """Return those of *sessions* that have not left yet."""
        wanted = {(each.pid, each.backend_start): each for each in sessions}
        rows = self._rows(STILL_THERE, {"pids": [pid for pid, _ in wanted]})
        there = ((pid, _instant(backend_start)) for pid, backend_start in rows)
        return [wanted[key] for key in there if key in wanted]

    def try_lock(self, scope: int) -> bool:
        """Return whether this session now holds the lock of *scope*, which is released when the
        session ends.
        """
        return bool(self._row(TRY_LOCK, {"key": LOCK_KEY, "scope": scope})[0])

    def lock_holder(self, scope: int) -> tuple[int, float | None] | None:
        """Return the pid of the session that holds the lock of *scope* and its age in seconds where
        it can be seen.
        """
        rows = self._rows(LOCK_HOLDER, {"key": LOCK_KEY, "scope": scope})
        return (rows[0][0], rows[0][1]) if rows else None

    def limits(self) -> Limits:
        """Return the slots of the server, the limit of this database, and the limits of roles."""
        total, database_limit = self._row(SLOTS)
        return Limits(
            server=total,
            database=database_limit if database_limit >= 0 else None,
            roles=dict(self._rows(ROLE_LIMITS)),
        )

    def inherits_grants(self) -> bool:
        """Return whether a plain GRANT gives the login role the rights of what it becomes a member
        of.
        """
        return bool(self._row(INHERITS)[0])

    def close(self) -> None:
        """End the session; nothing is raised, because there is nothing left to do about it."""
        try:
            if self._is_pooled:
                self._run(DISCARD)
        except (Error, LostError):
            logger.debug("Leaving the pooler's session as it was failed.", exc_info=True)
        try:
            self._connection.close()
        except Error:
            logger.debug("Closing the reaper's session failed.", exc_info=True)

    def _refuse_pooler(self, *, pooled: bool) -> None:
        (there,) = self._row(BACKEND_PID)
        is_pooled = self._connection.connection.info.backend_pid != there
        if is_pooled and not pooled:
            raise PooledError
        self._is_pooled = is_pooled

    def _system_identifier(self) -> int | None:
        try:
            return int(self._row(SYSTEM_IDENTIFIER)[0])
        except Error:
            return None

    def _row(
        self, statement: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> Any:
        return self._rows(statement, parameters)[0]

    def _rows(
        self, statement: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> list[Any]:
        return self._run(statement, parameters) or []

    def _run(
        self, statement: str, parameters: Mapping[str, Any] | Sequence[Any] | None = None
    ) -> list[Any] | None:
        if self._connection.connection is None:
            raise LostError("the session was closed")
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                # Of several statements psycopg2 shows the last one's rows, and psycopg 3 the first
                # one's until told to go on.
                with suppress(NotSupportedError):
                    while cursor.nextset():
                        pass
                return list(cursor.fetchall()) if cursor.description else None
        except Error as error:
            if self._connection.connection is None or self._connection.connection.closed:
                raise LostError(str(error)) from error
            raise


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + microseconds * _MICROSECOND


def _microseconds(instant: datetime | None) -> int | None:
    return None if instant is None else (instant - _EPOCH) // _MICROSECOND


def _signal_parameters(session: Session) -> tuple[int, int | None, int | None, str | None]:
    state = session.state.value if session.state else None
    return (
        session.pid,
        _microseconds(session.backend_start),
        _microseconds(session.state_change),
        state,
    )


def _session(row: Sequence[Any]) -> Session:
    (
        pid,
        backend_start,
        backend_type,
        user,
        database,
        application_name,
        client,
        state,
        state_change,
        observed_at,
        hidden,
        is_self,
        is_superuser,
        may_signal,
        in_transaction,
        waits_for_client,
        text,
    ) = row
    return Session(
        pid=pid,
        backend_start=_instant(backend_start),
        backend_type=backend_type,
        user=user,
        database=database,
        application_name=application_name,
        application=unstamped(application_name),
        client=client,
        state=State.named(state),
        state_change=_instant(state_change),
        observed_at=_EPOCH + observed_at * _MICROSECOND,
        hidden=hidden,
        is_self=is_self,
        is_superuser=is_superuser,
        may_signal=may_signal or is_superuser,
        in_transaction=in_transaction,
        waits_for_client=waits_for_client,
        last_statement=last_statement(text),
    )


# What the system checks ask: through Django's own cursor, because it is the application's session
# that they judge.

# pg_settings tells what is in force for this session, settings of the role and the database
# included, and has no row for what the server is too old for. session_user: who logged in takes the
# slot, whatever SET ROLE says.
APPLICATION = """
SELECT pg_catalog.pg_backend_pid(),
       current_database()::text,
       d.datconnlimit,
       r.rolname::text,
       r.rolconnlimit,
       r.rolsuper,
       ARRAY(SELECT s.name || '=' || s.setting FROM pg_catalog.pg_settings s WHERE s.name IN (
           'idle_session_timeout', 'idle_in_transaction_session_timeout', 'max_connections',
           'superuser_reserved_connections', 'reserved_connections',
           'rds.rds_superuser_reserved_connections'))
FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
WHERE r.rolname = session_user AND d.datname = current_database()
"""


@dataclass(frozen=True, kw_only=True)
class ApplicationSession:
    """What the server tells the application about its own session and the room that it has; a limit
    of None is none.
    """

    backend_pid: int
    client_pid: int
    database: str
    database_limit: int | None
    role: str
    role_limit: int | None
    is_superuser: bool
    settings: Mapping[str, int]

    @property
    def is_pooled(self) -> bool:
        """Whether something between us and the server made up the pid that the driver was given."""
        return self.backend_pid != self.client_pid


def application_session(connection: Any) -> ApplicationSession:
    """Return what the server tells over *connection*, Django's own for an alias; connects if need
    be.

    Raises what Django's cursor raises, and LookupError where the server doesn't answer as
    PostgreSQL does."""
    with connection.cursor() as cursor:
        cursor.execute(APPLICATION)
        row = cursor.fetchone()
    # Without autocommit the question began a transaction, and nobody would end it.
    if not connection.in_atomic_block and not connection.get_autocommit():
        connection.rollback()
    if row is None:
        raise LookupError("the server doesn't list the role or the database of this session")
    backend_pid, database, database_limit, role, role_limit, is_superuser, settings = row
    return ApplicationSession(
        backend_pid=backend_pid,
        client_pid=connection.connection.info.backend_pid,
        database=database,
        database_limit=database_limit if database_limit >= 0 else None,
        role=role,
        role_limit=role_limit if role_limit >= 0 and not is_superuser else None,
        is_superuser=is_superuser,
        settings={
            name: int(value) for name, _, value in (each.partition("=") for each in settings)
        },
    )


# What the pytest plugin asks, on a session of its own.


def has_left(alias: str, settings: Mapping[str, Any], backend_pid: int) -> bool:
    """Return whether the session *backend_pid* of an alias with *settings* is gone; False where
    nobody can tell.
    """
    own = own_settings(settings)
    own["OPTIONS"]["application_name"] = "conn_guard:pytest"
    wrapper = load_backend("django.db.backends.postgresql").DatabaseWrapper(own, alias)
    try:
        # Past Django, whose connections pytest-django blocks in a test that asks for no database.
        with (
            closing(wrapper.get_new_connection(wrapper.get_connection_params())) as raw,
            raw.cursor() as cursor,
        ):
            our_pid = raw.info.backend_pid
            cursor.execute(STILL_THERE, {"pids": [backend_pid, our_pid]})
            there = {pid for pid, _ in cursor.fetchall()}
    except Exception:
        logger.debug("Whether session %d is gone can't be asked.", backend_pid, exc_info=True)
        return False
    # Behind a pooler no pid that a client knows is one of the server's, not even our own.
    return our_pid in there and backend_pid not in there
