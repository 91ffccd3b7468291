"""Logs in on a session of our own, in place of the application's connection, and tries again."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, InterfaceError, OperationalError, connections
from django.db.utils import load_backend

from conn_guard.sessions.refused import advice
from conn_guard.sessions.report import Exit, RunError
from conn_guard.sessions.session import REAPER_APPLICATION
from conn_guard.sessions.stop import Stop
from conn_guard.text import masked, one_line

logger = logging.getLogger("conn_guard.postgres")

LOG_IN_FOR = timedelta(seconds=30)
"""How long a failing login is tried again: slots become free as connections end."""
ONE_TRY_S = 5
"""The seconds after which one try to log in is given up, for each host of the address."""

# libpq reports the backend pid received at login; a pooler reports a made-up one. Where the two
# differ, a SET or a lock of ours would stay on a session that the pooler gives to other clients.
BACKEND_PID = "SELECT pg_catalog.pg_backend_pid()"

# search_path: our statements must call the catalogue's functions, never a user's of the same name.
# role: ALTER ROLE ... SET role would hide the login role's own sessions. Timeouts: a reaper that
# hangs would keep its lock. idle_session_timeout: --every must outlive the setting that we
# recommend. force_generic_plan: the prepared statement is planned once. application_name: given at
# login, a pooler's session would keep it after the refusal, and each reaper would spare it.
SET_UP = """
SELECT pg_catalog.set_config('search_path', 'pg_catalog', false),
       pg_catalog.set_config('application_name', %(application_name)s, false),
       pg_catalog.set_config('role', 'none', false),
       pg_catalog.set_config('statement_timeout', '10s', false),
       pg_catalog.set_config('lock_timeout', '5s', false),
       pg_catalog.set_config('idle_in_transaction_session_timeout', '10s', false),
       pg_catalog.set_config('idle_session_timeout', '0', false),
       pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', false)
"""

# session_user, not current_user: the application's sessions belong to the role that logs in.
IDENTITY = """
SELECT session_user::text AS login_role,
       current_database()::text AS database,
       current_setting('server_version_num')::int AS version_num,
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS is_superuser,
       pg_is_in_recovery() AS is_standby,
       (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started_us
"""

# A statement of its own: some providers revoke the function, and then only the number is missing.
SYSTEM_IDENTIFIER = "SELECT system_identifier FROM pg_control_system()"

# A pooler in session mode keeps the session after we close it, and some are configured to reset
# nothing: our lock and settings would stay.
DISCARD = "DISCARD ALL"

# A URL or a password that was written where a name belongs.
_SECRETS = r"[a-z+]+://[^\s'\"]+|password\s*=\s*('[^']*'|\S+)"

# Keys of OPTIONS for Django, a pool or the application's connections; the other keys are libpq's.
_NOT_LIBPQ = {
    "assume_role",
    "autocommit",
    "connection_factory",
    "context",
    "cursor_factory",
    "isolation_level",
    "pool",
    "prepare_threshold",
    "row_factory",
    "server_side_binding",
}
_OUR_OPTIONS = {
    # Empty, not absent: without it libpq takes PGOPTIONS, and poolers refuse startup options.
    "options": "",
    # The same for PGAPPNAME: SET_UP names the session.
    "application_name": "",
    "connect_timeout": ONE_TRY_S,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


T = TypeVar("T")
Parameters = Mapping[str, Any] | Sequence[Any] | None


class LostError(Exception):
    """Our own session ended during the run; the text is the server's or the driver's."""


class PooledError(Exception):
    """A pooler stands between us and the server, so our session is shared."""


class TooOldError(Exception):
    """The server is older than PostgreSQL 14."""


@dataclass(frozen=True)
class Identity:
    """The server, database and login role of a session; equal for aliases of the same place."""

    system_identifier: int | None
    started_us: int
    login_role: str
    database: str


class Places:
    """The alias that came first to each server, database and role; threads may share it."""

    def __init__(self) -> None:
        self._first: dict[Identity, str] = {}
        self._lock = threading.Lock()

    def first(self, identity: Identity, alias: str) -> str:
        """Return the alias that came first to *identity*, which may be *alias* itself."""
        with self._lock:
            return self._first.setdefault(identity, alias)


def own_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the *settings* of an alias, changed for a session of our own."""
    given = settings.get("OPTIONS") or {}
    # libpq's keys are lower case; a third party's engine reads upper-case ones such as MAX_CONNS.
    options = {
        name: value for name, value in given.items() if name.islower() and name not in _NOT_LIBPQ
    }
    return {
        **settings,
        "ENGINE": "django.db.backends.postgresql",
        "AUTOCOMMIT": True,
        "ATOMIC_REQUESTS": False,
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": False,
        "TIME_ZONE": None,
        "OPTIONS": {**options, **_OUR_OPTIONS},
    }


class OwnSession:
    """Our own session on the server of an alias; use it from one thread at a time and close it."""

    def __init__(
        self,
        alias: str,
        *,
        pooled: bool = False,
        application_name: str = REAPER_APPLICATION,
        give_up_after_s: int = ONE_TRY_S,
    ) -> None:
        """Log in; *pooled* says that the project declared a pooler in session mode.

        *give_up_after_s* counts for each host of the alias's address.

        Raises PooledError, TooOldError, LostError, ImproperlyConfigured and Django's database
        errors.
        """
        self.alias = alias
        self.connection = _connect(alias, give_up_after_s)
        self._cursor: Any = None
        self._is_pooled = False
        try:
            self._refuse_pooler(pooled=pooled)
            if self.connection.pg_version < 140000:
                raise TooOldError
            self.row(SET_UP, {"application_name": application_name})
            identity = self.row(IDENTITY)
            self.login_role: str = identity["login_role"]
            self.database: str = identity["database"]
            self.version_num: int = identity["version_num"]
            self.is_superuser: bool = identity["is_superuser"]
            self.is_standby: bool = identity["is_standby"]
            self.identity = Identity(
                self._system_identifier(), identity["started_us"], self.login_role, self.database
            )
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """``role@host:port/database`` of this session, without a password."""
        info = self.connection.connection.info
        host = f"[{info.host}]" if ":" in (info.host or "") else info.host or "local"
        return f"{self.login_role}@{host}:{info.port}/{self.database}"

    def row(self, statement: str, parameters: Parameters = None) -> dict[str, Any]:
        """Run *statement* and return its only row by column name."""
        return self.rows(statement, parameters)[0]

    def value(self, statement: str, parameters: Parameters = None) -> Any:
        """Run *statement* and return the only column of its first row; None if it has no rows."""
        row = self._run(statement, parameters, lambda cursor: cursor.fetchone())
        return None if row is None else row[0]

    def rows(self, statement: str, parameters: Parameters = None) -> list[dict[str, Any]]:
        """Run *statement* and return its rows by column name."""
        return self._run(statement, parameters, named_rows)

    def _run(self, statement: str, parameters: Parameters, fetch: Callable[[Any], T]) -> T:
        """Run *statement* and fetch its result.

        Raises LostError if our session ended, and else Django's database errors.
        """
        if self.connection.connection is None:
            raise LostError("the session was closed")
        try:
            # One cursor for all statements: making one takes as long as a signal's round trip.
            if self._cursor is None:
                self._cursor = self.connection.cursor()
            self._cursor.execute(statement, parameters)
            return fetch(self._cursor)
        except Error as error:
            if self.connection.connection is None or self.connection.connection.closed:
                raise LostError(str(error)) from error
            raise

    def close(self) -> None:
        """End the session; errors are logged, not raised."""
        try:
            if self._is_pooled:
                self.rows(DISCARD)
        except (Error, LostError):
            logger.debug("The pooler's session could not be reset.", exc_info=True)
        try:
            self.connection.close()
        except Error:
            logger.debug("Our own session could not be closed.", exc_info=True)

    def _refuse_pooler(self, *, pooled: bool) -> None:
        on_server = self.value(BACKEND_PID)
        is_pooled = self.connection.connection.info.backend_pid != on_server
        if is_pooled and not pooled:
            raise PooledError
        self._is_pooled = is_pooled

    def _system_identifier(self) -> int | None:
        try:
            return int(self.value(SYSTEM_IDENTIFIER))
        except Error:
            return None


def named_rows(cursor: Any) -> list[dict[str, Any]]:
    """Return the rows of *cursor* by column name; none if the statement returns no rows."""
    if cursor.description is None:
        return []
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _connect(alias: str, give_up_after_s: int) -> Any:
    """Return a connection by Django's own engine, in autocommit, on which nothing was sent yet.

    Django's first statements are left out: a time zone that is set before the check for a pooler
    would stay on the pooler's session. ``connection_created`` isn't sent: a project's receiver
    that runs ``SET ROLE`` would hide the sessions that we look for.
    """
    settings = own_settings(connections.settings[alias])
    settings["OPTIONS"]["connect_timeout"] = give_up_after_s
    connection = load_backend("django.db.backends.postgresql").DatabaseWrapper(settings, alias)
    connection.inc_thread_sharing()  # with --every, each round may use it in another thread
    connection.queries_log = deque(maxlen=0)  # with DEBUG, Django would keep every statement
    with connection.wrap_database_errors:
        connection.connection = connection.get_new_connection(connection.get_connection_params())
        connection.set_autocommit(True)
    connection.run_on_commit = []
    return connection


class Login:
    """A login for an alias that is tried again and again until its time is over."""

    def __init__(
        self,
        alias: str,
        *,
        pooled: bool,
        stop: Stop,
        tell: Callable[[str], None],
        connect_for: timedelta | None = None,
        earlier: OwnSession | None = None,
        application_name: str = REAPER_APPLICATION,
        users: Sequence[str] = (),
        in_project: bool = True,
    ) -> None:
        """*connect_for* is LOG_IN_FOR unless given, and begins with the first try; 0 is one try.

        *earlier* is a closed session of the same alias, which knows the server's version and
        whether the role is a superuser. *users* are the roles in scope, if others than the alias's.
        *in_project* says that errors may advise aliases and CONN_GUARD.
        """
        self._alias = alias
        self._pooled = pooled
        self._stop = stop
        self._tell = tell
        self._seconds = (LOG_IN_FOR if connect_for is None else connect_for).total_seconds()
        self._earlier = earlier
        self._application_name = application_name
        self._users = users
        self._in_project = in_project
        self._until: float | None = None
        self._said = ""

    def attempt(self) -> OwnSession | None:
        """Try once; return None if a later try may succeed.

        After the first failure *tell* gets a line that says so, and each alias that differs in
        USER and PASSWORD alone is tried once.

        Raises RunError: Exit.UNREACHABLE, or Exit.USAGE where trying again can't help.
        """
        alias, is_first = self._alias, self._until is None
        if self._until is None:
            self._until = time.monotonic() + self._seconds
        elif self._stop.signum is not None:
            raise self._refusal()
        try:
            return OwnSession(
                alias,
                pooled=self._pooled,
                application_name=self._application_name,
                give_up_after_s=self._give_up_after_s,
            )
        except PooledError:
            pooled = _pooled(alias) if self._in_project else POOLED_DSN
            raise RunError(Exit.USAGE, pooled) from None
        except TooOldError:
            raise RunError(
                Exit.USAGE, f"The server of {alias!r} is older than PostgreSQL 14."
            ) from None
        except (LostError, OperationalError, InterfaceError) as error:
            self._said = one_line(error_text(error, alias))
        except (Error, ImproperlyConfigured) as error:
            message = f"DATABASES[{alias!r}] leads to no session: {error_text(error, alias)}"
            raise RunError(Exit.USAGE, message) from None
        if is_first:
            self._tell(f"{alias}: can't log in yet, trying for {self._seconds:g} s: {self._said}")
            if (session := self._by_another_role()) is not None:
                other = session.alias
                self._tell(f"{alias}: logged in by alias {other!r}; the scope stays the same")
                return session
        if self._stop.signum is not None or time.monotonic() >= self._until:
            raise self._refusal()
        return None

    @property
    def _give_up_after_s(self) -> int:
        # 2 is libpq's least, and 0 would wait without end.
        left_s = (self._until or 0) - time.monotonic() if self._seconds else ONE_TRY_S
        return max(2, min(ONE_TRY_S, math.ceil(left_s)))

    def _by_another_role(self) -> OwnSession | None:
        """Return a session for the first alias that differs in USER and PASSWORD and gets in."""
        for other in _of_same_server(self._alias, same_database=True):
            is_over = self._seconds and time.monotonic() >= (self._until or 0)
            if is_over or self._stop.signum is not None:
                break
            try:
                return OwnSession(
                    other,
                    application_name=self._application_name,
                    give_up_after_s=self._give_up_after_s,
                )
            except (Error, ImproperlyConfigured, LostError, PooledError, TooOldError):
                logger.debug("The alias %r could not log in either.", other, exc_info=True)
        return None

    def _refusal(self) -> RunError:
        alias, earlier = self._alias, self._earlier
        roles = self._users or (connections.settings[alias].get("USER") or "ROLE",)
        cures = advice(
            self._said,
            roles=list(map(masked, roles)),
            aliases=list(_of_same_server(alias)),
            version_num=earlier.version_num if earlier else None,
            is_superuser=earlier.is_superuser if earlier else None,
            command="idle_reaper" if self._in_project else "conn-guard reap",
        )
        separator = "" if self._said.endswith((".", "!", "?")) else "."
        message = f"{alias}: can't connect: {self._said}{separator} {cures}"
        return RunError(Exit.UNREACHABLE, message)


def address_key(alias: str) -> str:
    """Return a text that is equal for aliases whose settings name one server, database and role."""
    settings = connections.settings[alias]
    return repr((_server(settings), settings.get("NAME"), settings.get("USER")))


def _of_same_server(alias: str, *, same_database: bool = False) -> Iterator[str]:
    """Yield the aliases of the server of *alias* with another USER, in its or another database."""
    settings = connections.settings[alias]
    if not settings.get("USER"):
        return
    for other, values in connections.settings.items():
        if (
            other != alias
            and "postg" in values["ENGINE"]
            and values.get("USER")
            and values["USER"] != settings["USER"]
            and _server(values) == _server(settings)
            and (values["NAME"] == settings["NAME"]) is same_database
        ):
            yield other


def _server(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    options = settings.get("OPTIONS") or {}
    named_in_options = (options.get(key) for key in ("service", "host", "hostaddr", "port"))
    return (settings.get("HOST"), str(settings.get("PORT") or ""), *named_in_options)


POOLED_DSN = (
    "A pooler stands between conn-guard and the server, so its sessions can't be told apart. Name"
    " the server's own host and port, with --dsn or DATABASE_URL."
)


def _pooled(alias: str) -> str:
    return (
        f"{alias}: a pooler stands between this alias and the server, so its sessions can't be told"
        " apart. Add an alias that leads straight to the server and name it with --database; or,"
        f" where the pooler runs in session mode, write CONN_GUARD['POOLER'] = {{{alias!r}:"
        " 'session'}."
    )


def error_text(error: BaseException, alias: str) -> str:
    """Return the text of a database *error*, with the secrets of DATABASES[alias] masked."""
    settings = connections.settings[alias]
    options = settings.get("OPTIONS") or {}
    text = str(error)
    for secret in (
        settings.get("PASSWORD"),
        options.get("password"),
        options.get("sslpassword"),
        options.get("options"),
    ):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return re.sub(_SECRETS, "***", text, flags=re.IGNORECASE)


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a database *error* of either driver."""
    cause = error.__cause__ or error
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
