"""The SQL about sessions: list them, signal one, lock out other reapers, and read the limits."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from django.db.utils import load_backend

from conn_guard.sessions.census import Limits
from conn_guard.sessions.login import Login, OwnSession, named_rows, own_settings
from conn_guard.sessions.session import STATEMENT_BYTES, Session, State, last_statement
from conn_guard.sessions.stamp import unstamped
from conn_guard.sessions.stop import Stop

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("conn_guard.postgres")

# Times are whole microseconds, so no driver, time zone or USE_TZ can change the values that SIGNAL
# compares. The query's text is read only where it may say LISTEN or carry the engine's mark, and
# last_statement() drops it. It is read in ASCII, other bytes escaped: in a database with another
# encoding, sessions have texts in which our database finds no words and our driver no characters.
# pg_has_role(..., 'USAGE') is the server's own test before it signals.
LIST = f"""
SELECT a.pid,
       (extract(epoch FROM a.backend_start) * 1000000)::bigint AS backend_start_us,
       a.backend_type,
       a.usename::text AS user,
       a.datname::text AS database,
       coalesce(a.application_name, '') AS application_name,
       host(a.client_addr) AS client,
       a.state,
       (extract(epoch FROM a.state_change) * 1000000)::bigint AS state_change_us,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS observed_at_us,
       a.backend_type IS NULL AS hidden,
       a.pid = pg_backend_pid() AS is_self,
       coalesce(r.rolsuper, false) AS is_superuser,
       pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE') AS may_signal,
       a.xact_start IS NOT NULL OR a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL
           AS in_transaction,
       coalesce(a.wait_event_type = 'Client' AND a.wait_event = 'ClientRead', false)
           AS waits_for_client,
       CASE WHEN t.query ~* 'listen|conn_guard:holds-state' THEN t.query END AS query
FROM pg_stat_activity a
LEFT JOIN pg_roles r ON r.oid = a.usesysid
CROSS JOIN LATERAL (
    SELECT encode({STATEMENT_BYTES}, 'escape') AS query
) AS t
WHERE a.datid IS NOT NULL OR a.usesysid IS NOT NULL
ORDER BY a.state_change NULLS LAST, a.pid
"""  # noqa: S608 - the part that is put in is a constant

# Read after LIST: a session that takes a lock in between has a new state_change, so SIGNAL spares
# it. Only advisory locks count: an idle session may still show SIReadLock of a committed reader.
ADVISORY_LOCK_HOLDERS = (
    "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid IS NOT NULL"
)

# PostgreSQL 16 and later, and this database only; 14 reports the wrong pid and 15 none. The schema
# pg_temp_N outlives its session, so look for a relation in it.
TEMP_TABLE_HOLDERS = """
SELECT DISTINCT pg_stat_get_backend_pid(b) AS pid
FROM pg_stat_get_backend_idset() AS b
JOIN pg_namespace n ON n.nspname = 'pg_temp_' || b
JOIN pg_class c ON c.relnamespace = n.oid AND c.relpersistence = 't'
"""

# The pid and backend_start say which session was judged: the pid alone may belong to a new session
# by now. An unchanged state_change says that the session ran nothing since. wait_event is the one
# column that is read live, so it spares a session that woke after its row was read. The function
# with a pid, not the view: the view reads all rows before the first signal is sent.
# Prepared in SQL, which both drivers can do: parsing and planning would cost more than the check.
PREPARE_SIGNAL = """
PREPARE conn_guard_signal (int, bigint, bigint, text) AS
SELECT pg_terminate_backend(a.pid) AS signalled
FROM pg_stat_get_activity($1) AS a
WHERE a.pid <> pg_backend_pid()
  AND a.backend_type = 'client backend'
  AND a.backend_start = timestamptz 'epoch' + $2 * interval '1 microsecond'
  AND a.state_change = timestamptz 'epoch' + $3 * interval '1 microsecond'
  AND a.state = $4
  AND (a.state <> 'idle' OR a.xact_start IS NULL AND a.backend_xid IS NULL
       AND a.backend_xmin IS NULL)
  AND a.wait_event_type = 'Client' AND a.wait_event = 'ClientRead'
"""
# One session a statement, in autocommit: inside a transaction pg_stat_get_activity repeats the rows
# that it has read before.
SIGNAL = "EXECUTE conn_guard_signal (%s, %s, %s, %s)"

STILL_THERE = """
SELECT a.pid, (extract(epoch FROM a.backend_start) * 1000000)::bigint AS backend_start_us
FROM pg_stat_activity a
WHERE a.pid = ANY(%(pids)s::int[])
"""

# A lock of the session: a transaction's lock would keep a transaction open, and SIGNAL would check
# old rows.
TRY_LOCK = "SELECT pg_try_advisory_lock(%(key)s::int, %(scope)s::int) AS is_locked"
LOCK_HOLDER = """
SELECT l.pid, extract(epoch FROM clock_timestamp() - a.backend_start)::float8 AS age_seconds
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
  AND l.classid::bigint = %(key)s::bigint AND l.objid::bigint = %(scope)s::bigint & 4294967295
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
LIMIT 1
"""

# max_connections less the slots that no application can use. current_setting(..., true) is NULL
# where the server lacks the setting: reserved_connections before 16, RDS's own elsewhere.
SLOTS = """
SELECT current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0)
       - coalesce(current_setting('rds.rds_superuser_reserved_connections', true)::int, 0)
           AS usable,
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database_limit
"""
ROLE_LIMITS = (
    "SELECT rolname::text AS role, rolconnlimit FROM pg_roles"
    " WHERE rolconnlimit >= 0 AND NOT rolsuper"
)

# A role that is NOINHERIT, or a member WITH INHERIT FALSE, can't use a right that it was granted.
INHERITS = """
SELECT (SELECT rolinherit FROM pg_roles WHERE rolname = session_user)
   AND NOT EXISTS (SELECT FROM unnest(ARRAY['pg_read_all_stats', 'pg_signal_backend']) AS granted
                   WHERE pg_has_role(granted, 'MEMBER') AND NOT pg_has_role(granted, 'USAGE'))
       AS inherits
"""

LOCK_KEY = 0x636F6E67
"""The first half of the advisory lock's key; the second half is a hash of the scope."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


class InTransactionError(Exception):
    """A signal was asked for inside a transaction, where the server would check old rows."""


class Server:
    """A PostgreSQL server as our own session sees it; closing it ends the session."""

    def __init__(self, session: OwnSession) -> None:
        self.session = session
        self._is_prepared = False

    def list_sessions(self, *, holdings: bool = True) -> list[Session]:
        """Return every session of the server, the longest idle first.

        Without *holdings*, locks and temporary tables are not asked for, which takes less time.
        """
        sessions = [_session(row) for row in self.session.rows(LIST)]
        if not holdings:
            return sessions
        lock_holders = {row["pid"] for row in self.session.rows(ADVISORY_LOCK_HOLDERS)}
        temp_holders = (
            {row["pid"] for row in self.session.rows(TEMP_TABLE_HOLDERS)}
            if self.session.version_num >= 160000
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

    def signal(self, session: Session) -> bool:
        """End *session* if it is idle as it was listed, and return whether the signal was sent.

        Raises InTransactionError inside a transaction, LostError if our own session ended, and
        Django's database errors if the server refused.
        """
        connection = self.session.connection
        if connection.in_atomic_block or not connection.get_autocommit():
            raise InTransactionError("Signal a session in autocommit, never inside a transaction.")
        if not self._is_prepared:
            self.session.rows(PREPARE_SIGNAL)
            self._is_prepared = True
        parameters = (
            session.pid,
            _microseconds(session.backend_start),
            _microseconds(session.state_change),
            session.state.value if session.state else None,
        )
        return bool(self.session.value(SIGNAL, parameters))

    def still_there(self, sessions: Iterable[Session]) -> list[Session]:
        """Return those of *sessions* that have not ended yet."""
        wanted = {(each.pid, each.backend_start): each for each in sessions}
        rows = self.session.rows(STILL_THERE, {"pids": [pid for pid, _ in wanted]})
        found = ((row["pid"], _instant(row["backend_start_us"])) for row in rows)
        return [wanted[key] for key in found if key in wanted]

    def try_lock(self, scope: int) -> bool:
        """Return whether our session now holds the lock of *scope*; it keeps it until it ends."""
        return bool(self.session.row(TRY_LOCK, {"key": LOCK_KEY, "scope": scope})["is_locked"])

    def lock_holder(self, scope: int) -> tuple[int, float | None] | None:
        """Return the pid of the session that holds the lock of *scope*, and its age in seconds.

        The age is None where our role may not see it.
        """
        rows = self.session.rows(LOCK_HOLDER, {"key": LOCK_KEY, "scope": scope})
        return (rows[0]["pid"], rows[0]["age_seconds"]) if rows else None

    def limits(self) -> Limits:
        """Return how many sessions the server, our database and each role may have."""
        row = self.session.row(SLOTS)
        return Limits(
            server=row["usable"],
            database=row["database_limit"] if row["database_limit"] >= 0 else None,
            roles={each["role"]: each["rolconnlimit"] for each in self.session.rows(ROLE_LIMITS)},
        )

    def inherits_grants(self) -> bool:
        """Return whether the login role can use the rights of each role that it is a member of."""
        return bool(self.session.row(INHERITS)["inherits"])

    def close(self) -> None:
        """End our own session; errors are logged, not raised."""
        self.session.close()


class ServerClient:
    """Works on the server of one alias, by a session that it logs in when it first needs it.

    The session is kept until close(), from one use to the next.
    """

    def __init__(
        self,
        alias: str,
        *,
        pooled: bool,
        application_name: str,
        stop: Stop | None,
        tell: Callable[[str], None] | None,
        connect_for: timedelta | None = None,
        users: Sequence[str] = (),
        in_project: bool = True,
    ) -> None:
        """*pooled* says that the project declared a pooler in session mode; *tell* gets lines.

        Only a login that fails is told, and one that keeps failing once. *connect_for* limits how
        long it is tried again. *users* are the roles in scope, if others than the alias's.
        *in_project* says that errors may advise aliases and CONN_GUARD.
        """
        self.alias = alias
        self._pooled = pooled
        self._application_name = application_name
        self._stop = stop or Stop()
        self._tell = tell or (lambda line: None)
        self._connect_for = connect_for
        self._users = users
        self._in_project = in_project
        self._login: Login | None = None
        self._refused: Exception | None = None
        self._server: Server | None = None
        self._earlier: OwnSession | None = None
        self._is_told = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session of its own."""
        if self._server is not None:
            self._server.close()
        self._server = self._login = self._refused = None

    def try_log_in(self) -> bool:
        """Try once to log in if necessary; return False if a later try may succeed.

        server() raises what a try raised.
        """
        if self._server is not None or self._refused is not None:
            return True
        if self._login is None:
            is_told, self._is_told = self._is_told, True
            self._login = Login(
                self.alias,
                pooled=self._pooled,
                stop=self._stop,
                tell=(lambda line: None) if is_told else self._tell,
                connect_for=self._connect_for,
                earlier=self._earlier,
                application_name=self._application_name,
                users=self._users,
                in_project=self._in_project,
            )
        try:
            session = self._login.attempt()
        except Exception as error:  # noqa: BLE001 - server() raises it
            self._login, self._refused = None, error
            return True
        if session is None:
            return False
        self._login, self._is_told = None, False
        self._server, self._earlier = Server(session), session
        return True

    def server(self) -> Server:
        """Return the server as our own session sees it; log in if necessary. Raises RunError."""
        while (server := self._server) is None:
            if self._refused is not None:
                refused, self._refused = self._refused, None
                raise refused
            if not self.try_log_in():
                self._stop.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, no secret
        return server


def _instant(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + microseconds * _MICROSECOND


def _microseconds(instant: datetime | None) -> int | None:
    return None if instant is None else (instant - _EPOCH) // _MICROSECOND


def _session(row: Mapping[str, Any]) -> Session:
    return Session(
        pid=row["pid"],
        backend_start=_instant(row["backend_start_us"]),
        backend_type=row["backend_type"],
        user=row["user"],
        database=row["database"],
        application_name=row["application_name"],
        application=unstamped(row["application_name"]),
        client=row["client"],
        state=State.named(row["state"]),
        state_change=_instant(row["state_change_us"]),
        observed_at=_EPOCH + row["observed_at_us"] * _MICROSECOND,
        hidden=row["hidden"],
        is_self=row["is_self"],
        is_superuser=row["is_superuser"],
        may_signal=row["may_signal"] or row["is_superuser"],
        in_transaction=row["in_transaction"],
        waits_for_client=row["waits_for_client"],
        last_statement=last_statement(row["query"]),
    )


# For the pytest plugin, on a session of its own.


def has_left(alias: str, settings: Mapping[str, Any], backend_pid: int) -> bool:
    """Return whether the session *backend_pid* of an alias with *settings* is known to be gone.

    False where that can't be found out.
    """
    own = own_settings(settings)
    own["OPTIONS"]["application_name"] = "conn_guard:pytest"
    wrapper = load_backend("django.db.backends.postgresql").DatabaseWrapper(own, alias)
    try:
        # Without Django's cursor: pytest-django blocks it in a test that asks for no database.
        with (
            closing(wrapper.get_new_connection(wrapper.get_connection_params())) as raw,
            raw.cursor() as cursor,
        ):
            our_pid = raw.info.backend_pid
            cursor.execute(STILL_THERE, {"pids": [backend_pid, our_pid]})
            there = {row["pid"] for row in named_rows(cursor)}
    except Exception:
        logger.debug("Looking for the session %d failed.", backend_pid, exc_info=True)
        return False
    # Behind a pooler our own pid is made up too, so the other pid's absence tells nothing.
    return our_pid in there and backend_pid not in there
