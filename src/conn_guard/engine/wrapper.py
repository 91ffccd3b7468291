"""The mixin that changes Django's DatabaseWrapper: it checks, replaces and closes connections.

Two threads may use a wrapper: its own and the reclaimer. Each wrapper has a lock that keeps them
apart. The reclaimer never waits for that lock, and does not log while it holds it: a thread that
waits for the lock may hold the lock of a log handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from django.core import signals
from django.db import Error, InterfaceError, ProgrammingError
from django.db import connections as django_connections
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as DjangosWrapper
from django.utils.asyncio import async_unsafe

from conn_guard import conf
from conn_guard.connections import closing, events, ownership, scopes
from conn_guard.engine import driver, reading, reclaimer
from conn_guard.engine.cursors import (
    Cursor,
    DebugCursor,
    DebugServerSideCursor,
    ServerSideCursor,
)
from conn_guard.engine.held import Opener
from conn_guard.engine.lease import Lease
from conn_guard.sessions import stamp

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import CursorDebugWrapper, DatabaseWrapper
    from django.db.backends.utils import CursorWrapper

    class _Base(DatabaseWrapper):
        """Attributes of Django's wrapper that its type stubs leave out."""

        isolation_level: Enum
        errors_occurred: bool
        health_check_enabled: bool
        _thread_ident: int
        _thread_sharing_count: int

        @property
        def pool(self) -> Any: ...
        def _cursor(self, name: str | None = None) -> CursorWrapper: ...
        def _prepare_cursor(self, cursor: Any) -> CursorWrapper: ...
        def _close(self) -> None: ...
        def _set_autocommit(self, autocommit: bool) -> None: ...  # noqa: FBT001

else:
    _Base = object

logger = logging.getLogger("conn_guard.engine")

_STATE_LEFT_TO_PARENT = (
    "The session of the parent process may hold another role, a setting or a lock, and this process"
    " goes on without it. Close the connection before the fork, or call its close() in the child."
)

# Seconds for which "auto" keeps an unused connection where CONN_MAX_AGE is 0.
_AUTO_IDLE_S = 60.0
# With a limit near zero the reclaimer would never sleep.
_MIN_IDLE_S = 0.01
# Seconds until the next attempt to close a connection that is held too long and in use.
_HELD_RETRY_S = 1.0
_CONNECT_ATTEMPTS = 3
# Module-level names, because every query pays for an attribute lookup.
_getpid = os.getpid
_monotonic = time.monotonic
_get_ident = threading.get_ident
_get_running_loop = asyncio._get_running_loop


def _if_djangos(method: Any) -> Any:
    """Return *method* if ``async_unsafe`` made it, and None if a tool has replaced Django's."""
    djangos = async_unsafe(_if_djangos).__code__
    return method if getattr(method, "__code__", None) is djangos else None


# A tool may replace methods in Django's classes, before or after this import. Ours call those.
_ensure_connection = _if_djangos(BaseDatabaseWrapper.ensure_connection)
_cursor = _if_djangos(BaseDatabaseWrapper.cursor)
_commit = _if_djangos(BaseDatabaseWrapper.commit)
_create_cursor = _if_djangos(DjangosWrapper.create_cursor)
_commit_here: Any = getattr(_commit, "__wrapped__", None)
_create_cursor_here: Any = getattr(_create_cursor, "__wrapped__", None)


class GuardedWrapper(_Base):
    """Mixed into Django's DatabaseWrapper: every connection has an owner and a check before use."""

    _connection_pools: ClassVar[dict[str, Any]] = {}
    _pools_pid = os.getpid()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn_guard_pins = 0
        self.state_left_to_parent = False
        self.lock = threading.RLock()
        self.lease: Lease | None = None
        ownership.own_from_birth(self)

    # Connecting

    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()
        settings = conf.current()
        if settings.stamp_origin:
            name = params.get("application_name") or os.environ.get("PGAPPNAME") or "django"
            # A connection that serves several requests would carry the name of the first view.
            serves_many = self.settings_dict["CONN_MAX_AGE"] != 0 or self.settings_dict[
                "OPTIONS"
            ].get("pool")
            names_view = settings.stamp_origin == "view" and not serves_many
            view = scopes.current_view() if names_view else ""
            params["application_name"] = stamp.stamp(name, os.getpid(), view)
        if isinstance(params["cursor_factory"], type):
            params["cursor_factory"] = reading.reading_class(params["cursor_factory"])
        return params

    @property
    def pool(self) -> Any:
        # Django reads this property twice in each transaction, so the case without a pool is first.
        if not self.settings_dict["OPTIONS"].get("pool") or self.alias == NO_DB_ALIAS:
            return None
        if GuardedWrapper._pools_pid != os.getpid():
            _leave_pools_to_parent()
        if self.alias not in self._connection_pools:
            # A pool refers to the wrapper that made it. So a wrapper without another use makes it,
            # and this one can still be garbage-collected.
            return super(GuardedWrapper, type(self)(self.settings_dict, self.alias)).pool
        return super().pool

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        began_at = _monotonic()
        raw = super().get_new_connection(conn_params)
        driver_connection = driver.wrap(raw)
        if driver_connection.pool is not None:
            # A pool learns that a connection is dead when it is given back, so each dead one comes
            # up once.
            for _ in range(driver_connection.pool.max_size):
                if not driver_connection.ended_outside_transaction():
                    break
                driver_connection.give_back()
                events.report("replaced", self.alias)
                raw = super().get_new_connection(conn_params)
                driver_connection = driver.wrap(raw)
        kind: events.Kind = "created" if driver_connection.pool is None else "waited"
        events.report(kind, self.alias, seconds=_monotonic() - began_at)
        self.lease = Lease(self, driver_connection, idle_for_s=self._idle_for_s())
        return raw

    def connect(self) -> None:
        for attempt in range(1, _CONNECT_ATTEMPTS + 1):
            try:
                super().connect()
                self._note_connected()
                return
            except BaseException as error:
                lease = self.lease
                died = (
                    lease is not None
                    and lease.driver_connection.is_closed()
                    and isinstance(error, (Error, driver.DriverError))
                )
                # Django would use a connection that was left without its role or its time zone.
                with contextlib.suppress(Exception):
                    self.close()
                # The application has run no statement on this session, so a retry loses nothing.
                if not died or attempt == _CONNECT_ATTEMPTS:
                    raise

    def init_connection_state(self) -> None:
        lease = self.lease
        if lease is not None:
            lease.driver_connection.show_statements_to(lease.note_setup)
        super().init_connection_state()
        if lease is not None:
            lease.driver_connection.show_statements_to(lease.note_statement)

    def _note_connected(self) -> None:
        lease = self.lease
        if lease is not None:
            lease.note_connected(
                role=self.settings_dict["OPTIONS"].get("assume_role"),
                timezone=self.timezone_name,
                isolation=self.isolation_level.name.replace("_", " ").lower(),
            )
            settings = conf.current()
            if settings.report_held_for is not None:
                lease.opener = Opener(
                    self.alias,
                    lease.raw.info.backend_pid,
                    settings.report_held_for.total_seconds(),
                    closes=settings.held_for_action == "close",
                )
            lease.used_at = _monotonic()
            reclaimer.register(
                lease.key,
                self,
                due_at=lease.due_at(),
                submits_jobs=lease.driver_connection.pool is not None,
            )

    def _idle_for_s(self) -> float:
        idle_for = conf.current().engine_idle_for
        if isinstance(idle_for, timedelta):
            return max(idle_for.total_seconds(), _MIN_IDLE_S)
        max_age: float | None = self.settings_dict["CONN_MAX_AGE"]
        if idle_for is None or max_age is None:
            return math.inf
        return max(max_age, _MIN_IDLE_S) if max_age > 0 else _AUTO_IDLE_S

    # Before use

    def ensure_connection(self) -> None:
        with self.lock:
            lease = self.lease
            if lease is not None:
                now = _monotonic()
                if lease.pid != _getpid():
                    self.leave_to_parent()
                elif (
                    now - lease.used_at <= lease.check_after_s
                    and self.connection is not None
                    and not self.errors_occurred
                    and _get_running_loop() is None
                    # pytest-django replaces it in tests that may not use the database.
                    and BaseDatabaseWrapper.ensure_connection is _ensure_connection
                ):
                    lease.used_at = now
                    return
                elif not self.in_atomic_block and (
                    self.errors_occurred or now - lease.used_at > lease.check_after_s
                ):
                    self.replace_if_ended()
                lease.used_at = now
            if self.state_left_to_parent:
                self.state_left_to_parent = False
                raise InterfaceError(_STATE_LEFT_TO_PARENT)
            if self.connection is None and self.in_atomic_block and self.closed_in_transaction:
                # Django 4.2 doesn't raise this; it would go on outside the transaction.
                raise ProgrammingError("Cannot open a new connection in an atomic block.")
            super().ensure_connection()

    def replace_if_ended(self) -> bool:
        """Close a connection whose session has ended, unless a new session would lose something.

        Return whether it was closed; the next use opens a new one.
        """
        lease = self.lease
        if (
            lease is None
            or not lease.is_connected
            or self.in_atomic_block
            or self._thread_sharing_count
            or not lease.driver_connection.ended_outside_transaction()
            or lease.made_state
            or self.conn_guard_pins
            or self.autocommit != self.settings_dict["AUTOCOMMIT"]
            or not conf.current().engine_replace.get(self.alias, True)
            or not lease.driver_connection.shows_statements
            or not lease.driver_connection.has_settings_as_connected()
            or lease.driver_connection.was_set_up()
        ):
            return False
        lease.replaced = True
        # An open cursor must check before its next statement, even if it was used a moment ago.
        lease.check_after_s = -math.inf
        self.conn_guard_reason = "replaced"
        events.report("replaced", self.alias)
        self.close()
        return True

    # Django's test for a running event loop raises and catches an error where none runs. These
    # three ask more quickly, and leave the rest to Django.

    def cursor(self) -> CursorWrapper:
        if _get_running_loop() is None and BaseDatabaseWrapper.cursor is _cursor:
            return self._cursor()
        return super().cursor()

    def commit(self) -> None:
        if _get_running_loop() is None and BaseDatabaseWrapper.commit is _commit:
            _commit_here(self)
        else:
            super().commit()

    def create_cursor(self, name: str | None = None) -> Any:
        if _get_running_loop() is None and DjangosWrapper.create_cursor is _create_cursor:
            return _create_cursor_here(self, name)
        return super().create_cursor(name)

    def _cursor(self, name: str | None = None) -> CursorWrapper:
        # Django's code and ours in one function, because every query pays for each call.
        with self.lock:
            if self.health_check_enabled:
                self.close_if_health_check_failed()
            lease = self.lease
            if (
                lease is None
                or _monotonic() - lease.used_at > lease.check_after_s
                or self.errors_occurred
                or self.connection is None
                or lease.pid != _getpid()
                or BaseDatabaseWrapper.ensure_connection is not _ensure_connection
            ):
                self.ensure_connection()
                lease = self.lease
            with self.wrap_database_errors:
                cursor = self._prepare_cursor(self.create_cursor(name))
            if lease is not None:
                lease.track_cursor(cursor.cursor)
            return cursor

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        return (ServerSideCursor if getattr(cursor, "name", None) else Cursor)(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> CursorDebugWrapper:
        if getattr(cursor, "name", None):
            return DebugServerSideCursor(cursor, self)
        return DebugCursor(cursor, self)

    def validate_thread_sharing(self) -> None:
        # Django takes a lock here to ask whether the wrapper is shared. That is slow, and a
        # finalizer that takes a lock can deadlock.
        if self._thread_ident != _get_ident():
            super().validate_thread_sharing()

    def get_autocommit(self) -> bool:
        # Django calls this at the end of a request; ensure_connection() would then connect again
        # for nothing.
        return self.autocommit if self.connection is not None else super().get_autocommit()

    def set_autocommit(
        self,
        autocommit: bool,  # noqa: FBT001
        force_begin_transaction_with_broken_autocommit: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        with self.lock:
            super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)

    def _set_autocommit(self, autocommit: bool) -> None:  # noqa: FBT001
        try:
            super()._set_autocommit(autocommit)
        except Error:
            # Between two transactions the look closes the driver's end of an ended session, which
            # then refuses what it does elsewhere without the server. If the old autocommit stayed,
            # the next atomic() would not be left, and committed work would lose its on_commit.
            lease = self.lease
            if (
                lease is None
                or not lease.is_connected
                or autocommit != self.settings_dict["AUTOCOMMIT"]
                or not lease.driver_connection.ended_outside_transaction()
            ):
                raise
            lease.driver_connection.autocommit = lease.raw.autocommit

    # After use

    def close(self) -> None:
        with self.lock:
            if self.lease is not None and self.lease.pid != os.getpid():
                self.leave_to_parent()
            self.state_left_to_parent = False
            super().close()

    def _close(self) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.end()
        super()._close()

    def close_if_unusable_or_obsolete(self) -> None:
        with self.lock:
            if self.lease is not None and self.lease.pid != os.getpid():
                self.leave_to_parent()
            self.state_left_to_parent = False
            if self.connection is None or self.replace_if_ended():
                return
            super().close_if_unusable_or_obsolete()

    # Called by the reclaimer

    def check_due(self, now: float) -> float:
        """Report or close the connection if that is due at *now*; return when to check next."""
        lease = self.lease
        if lease is None:
            return math.inf
        # The report comes first, because it can't be logged while the lock is held.
        reports_at = lease.report_if_held(now)
        return min(reports_at, self._close_if_held(lease, now), self._close_if_idle(lease, now))

    def leave_to_parent(self) -> None:
        """In a forked child: leave the session to the parent and go on without a connection."""
        self.lock = threading.RLock()
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.leave_to_parent()
            self.connection = None
            # A subclass may remember what it set on the session, and forgets it in its close().
            with contextlib.suppress(Exception):
                self.close()
            self.state_left_to_parent = lease.made_known_state or bool(self.conn_guard_pins)
            if self.in_atomic_block:
                # The transaction is the parent's too, so the child is in the same position as after
                # a close() in an atomic block.
                self.closed_in_transaction = True
                self.needs_rollback = True

    def _close_if_held(self, lease: Lease, now: float) -> float:
        opener = lease.opener
        if opener is None or now < opener.close_at:
            return math.inf if opener is None else opener.close_at
        if self._close_at_rest(lease, unused_since=now - _MIN_IDLE_S, for_held=opener):
            return math.inf
        # A session that was found to hold state keeps it in most cases, and each question costs
        # the server a query.
        holds_state = lease.asked_at_use == lease.used_at
        retry_s = opener.held_for_s if holds_state else min(opener.held_for_s, _HELD_RETRY_S)
        opener.close_at = now + retry_s
        return opener.close_at

    def _close_if_idle(self, lease: Lease, now: float) -> float:
        idle_at = lease.used_at + lease.idle_for_s
        if now < idle_at:
            return idle_at
        if self._close_at_rest(lease, unused_since=now - lease.idle_for_s):
            return math.inf
        # Check again one full idle period from now, whatever the reason to spare it.
        return now + lease.idle_for_s

    def _close_at_rest(
        self, lease: Lease, *, unused_since: float, for_held: Opener | None = None
    ) -> bool:
        """Close the connection if it is at rest and holds no state; return whether it did."""
        # Behind a transaction pooler a client holds no session state, and the query would run on
        # another client's session.
        shared = conf.current().pooler.get(self.alias) == "transaction"
        if lease.asked_at_use == lease.used_at or not self.lock.acquire(blocking=False):
            return False
        try:
            if (
                self.lease is not lease
                or lease.used_at > unused_since
                or not self._is_reclaimable(lease)
            ):
                return False
            lease.asked_at_use = lease.used_at
            pinned = bool(self.conn_guard_pins) or lease.driver_connection.was_set_up()
            if (pinned or not shared) and lease.holds_state(pinned=pinned):
                return False
            if for_held is not None:
                for_held.closed_by_engine = True
            closing.abandon(self, "idle")
        finally:
            self.lock.release()
        return True

    def _is_reclaimable(self, lease: Lease) -> bool:
        # With AUTOCOMMIT off in the settings, a connection between two transactions may still be in
        # use by a task.
        return (
            lease.pid == os.getpid()
            and self.settings_dict["AUTOCOMMIT"]
            and not self._thread_sharing_count
            and not lease.has_open_cursor()
            and lease.driver_connection.is_idle()
        )


def _leave_pools_to_parent() -> None:
    """In a forked child: leave the pools to the parent; their threads were not copied."""
    GuardedWrapper._pools_pid = os.getpid()
    for pool in GuardedWrapper._connection_pools.values():
        driver.keep_for_parent(pool)
        for raw in list(getattr(pool, "_pool", ())):
            driver.leave_to_parent(raw)
    GuardedWrapper._connection_pools.clear()


def _drop_broken_wrappers(sender: Any, **kwargs: object) -> None:
    """Receive ``request_started``: drop the wrappers that an unfinished atomic block made unusable.

    Django makes a new wrapper at the next use. Under the test client nothing is dropped, because
    its caller may still be in that block.
    """
    if getattr(sender, "__module__", "") == "django.test.client":
        return
    for wrapper in django_connections.all(initialized_only=True):
        if (
            isinstance(wrapper, GuardedWrapper)
            and wrapper.closed_in_transaction
            and not wrapper._thread_sharing_count
        ):
            del django_connections[wrapper.alias]


def _close_raw_transactions(sender: Any, **kwargs: object) -> None:
    """Receive ``request_finished``: close connections that a raw BEGIN left in a transaction.

    Django does this itself where autocommit was switched off. The test client, which sends no
    sender, is left alone, and with the middleware the request has already ended them.
    """
    if sender is None or scopes.current_scope() is not None:
        return
    for wrapper in django_connections.all(initialized_only=True):
        if (
            isinstance(wrapper, GuardedWrapper)
            and wrapper.connection is not None
            and wrapper.settings_dict["AUTOCOMMIT"]
            and not wrapper.in_atomic_block
            and closing.in_transaction(wrapper)
        ):
            message = (
                "A request left a transaction open on %r; it is rolled back with its connection."
            )
            logger.warning(message, wrapper.alias)
            wrapper.conn_guard_reason = "request"
            wrapper.close()


# At import, so that the engine also works without the app: Django imports an engine when it makes
# the first wrapper.
ownership.watch()
signals.request_started.connect(_drop_broken_wrappers, dispatch_uid="conn_guard.engine")
signals.request_finished.connect(_close_raw_transactions, dispatch_uid="conn_guard.engine")
