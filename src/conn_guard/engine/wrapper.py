"""The engine's heart: this room holds what the guarded wrappers do differently from Django's own.

Two threads may want the same wrapper, its own and the reclaimer, and one lock stands between them.
The reclaimer never waits for it, and does not log while it has it: whoever waits for it may hold
any other lock."""

from __future__ import annotations

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
from django.db import Error, ProgrammingError
from django.db import connections as django_connections
from django.db.backends.base.base import NO_DB_ALIAS

from conn_guard import conf
from conn_guard.connections import closing, ownership, scopes
from conn_guard.engine import driver, reclaimer
from conn_guard.engine.cursors import Cursor, DebugCursor
from conn_guard.engine.held import Opener
from conn_guard.engine.lease import Lease
from conn_guard.sessions import stamp

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import CursorDebugWrapper, DatabaseWrapper
    from django.db.backends.utils import CursorWrapper

    class _Base(DatabaseWrapper):
        """What Django's wrapper has and its stubs leave out."""

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

else:
    _Base = object

logger = logging.getLogger("conn_guard.engine")

# Seconds for which "auto" keeps an unused connection that CONN_MAX_AGE does not keep at all.
_AUTO_IDLE_S = 60.0
# A limit near zero would keep the reclaimer busy for nothing.
_LEAST_IDLE_S = 0.01
_ATTEMPTS = 3
# Every query pays for these.
_getpid = os.getpid
_monotonic = time.monotonic
_get_ident = threading.get_ident


class Guarded(_Base):
    """Mixed into a DatabaseWrapper of Django's: owned from birth, looked at before use, closed when
    nobody needs it.
    """

    _connection_pools: ClassVar[dict[str, Any]] = {}
    _pools_pid = os.getpid()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn_guard_pins = 0
        self.guard = threading.RLock()
        self.lease: Lease | None = None
        ownership.own_from_birth(self)

    # Connecting

    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()
        settings = conf.current()
        if settings.stamp_origin:
            name = params.get("application_name") or os.environ.get("PGAPPNAME") or "django"
            # A connection that serves one request after another would carry the name of the wrong
            # view.
            lasts = self.settings_dict["CONN_MAX_AGE"] != 0 or self.settings_dict["OPTIONS"].get(
                "pool"
            )
            view = scopes.current_view() if settings.stamp_origin == "view" and not lasts else ""
            params["application_name"] = stamp.stamp(name, os.getpid(), view)
        if isinstance(params["cursor_factory"], type):
            params["cursor_factory"] = driver.read(params["cursor_factory"])
        return params

    @property
    def pool(self) -> Any:
        # Django asks twice for each transaction.
        if not self.settings_dict["OPTIONS"].get("pool") or self.alias == NO_DB_ALIAS:
            return None
        if Guarded._pools_pid != os.getpid():
            _leave_pools_to_parent()
        if self.alias not in self._connection_pools:
            # A pool keeps hold of the wrapper that made it, which could then never be dropped: one
            # of no other use does it.
            return super(Guarded, type(self)(self.settings_dict, self.alias)).pool
        return super().pool

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        raw = super().get_new_connection(conn_params)
        driver_connection = driver.wrap(raw)
        if driver_connection.pool is not None:
            # A pool learns that a connection died when it is given back: each dead one is met once.
            for _ in range(driver_connection.pool.max_size):
                if not driver_connection.ended_at_rest():
                    break
                driver_connection.give_back()
                raw = super().get_new_connection(conn_params)
                driver_connection = driver.wrap(raw)
        self.lease = Lease(self, driver_connection, idle_for_s=self._idle_for_s())
        return raw

    def connect(self) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                super().connect()
                self._connected()
                return
            except BaseException as error:
                lease = self.lease
                died = (
                    lease is not None
                    and lease.driver_connection.is_dead()
                    and isinstance(error, (Error, driver.DriverError))
                )
                # Half made, without its role or its time zone, it must not serve the next query as
                # if nothing had been.
                with contextlib.suppress(Exception):
                    self.close()
                # Nothing of the application's ran on a session that died this young, so another one
                # is as good.
                if not died or attempt == _ATTEMPTS:
                    raise

    def init_connection_state(self) -> None:
        super().init_connection_state()
        # What Django itself sets up belongs to every connection.
        if self.lease is not None:
            self.lease.driver_connection.show_statements_to(self.lease.runs)

    def _connected(self) -> None:
        lease = self.lease
        if lease is not None:
            lease.connected(
                role=self.settings_dict["OPTIONS"].get("assume_role"),
                timezone=self.timezone_name,
                isolation=self.isolation_level.name.replace("_", " ").lower(),
            )
            held_for = conf.current().report_held_for
            if held_for is not None:
                lease.opener = Opener(
                    self.alias, lease.raw.info.backend_pid, held_for.total_seconds()
                )
            lease.used_at = _monotonic()
            reclaimer.keep(
                lease.key,
                self,
                due_at=lease.due_at(),
                has_jobs=lease.driver_connection.pool is not None,
            )

    def _idle_for_s(self) -> float:
        idle_for = conf.current().engine_idle_for
        if isinstance(idle_for, timedelta):
            return max(idle_for.total_seconds(), _LEAST_IDLE_S)
        max_age: float | None = self.settings_dict["CONN_MAX_AGE"]
        if idle_for is None or max_age is None:
            return math.inf
        return max(max_age, _LEAST_IDLE_S) if max_age > 0 else _AUTO_IDLE_S

    # Before use

    def ensure_connection(self) -> None:
        with self.guard:
            lease = self.lease
            if lease is not None:
                now = _monotonic()
                if lease.pid != _getpid():
                    self.leave_to_parent()
                elif not self.in_atomic_block and (
                    self.errors_occurred or now - lease.used_at > lease.brisk_s
                ):
                    self.replace_if_ended()
                lease.used_at = now
            if self.connection is None and self.in_atomic_block and self.closed_in_transaction:
                # Django 4.2 does not say so, and would go on outside the transaction.
                raise ProgrammingError("Cannot open a new connection in an atomic block.")
            super().ensure_connection()

    def replace_if_ended(self) -> bool:
        """Close a connection whose session has ended, unless something would be lost by going on
        with another.
        """
        lease = self.lease
        if (
            lease is None
            or not lease.is_connected
            or self.in_atomic_block
            or self._thread_sharing_count
            or not lease.driver_connection.ended_at_rest()
            or lease.made_state
            or self.conn_guard_pins
            or self.autocommit != self.settings_dict["AUTOCOMMIT"]
            or not conf.current().engine_replace.get(self.alias, True)
            or not lease.driver_connection.shows_statements
            or not lease.driver_connection.is_as_connected()
            or lease.driver_connection.has_own_adapters()
        ):
            return False
        lease.replaced = True
        # An open cursor must notice at once, however short it rests.
        lease.brisk_s = -math.inf
        self.close()
        return True

    def _cursor(self, name: str | None = None) -> CursorWrapper:
        # Django's own in one piece with ours, because every query pays for each call.
        with self.guard:
            if self.health_check_enabled:
                self.close_if_health_check_failed()
            lease = self.lease
            if (
                lease is None
                or _monotonic() - lease.used_at > lease.brisk_s
                or self.errors_occurred
                or self.connection is None
                or lease.pid != _getpid()
            ):
                self.ensure_connection()
                lease = self.lease
            with self.wrap_database_errors:
                cursor = self._prepare_cursor(self.create_cursor(name))
            if lease is not None:
                lease.opened(cursor.cursor)
            return cursor

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        return Cursor(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> CursorDebugWrapper:
        return DebugCursor(cursor, self)

    def validate_thread_sharing(self) -> None:
        # Django asks a lock first whether the wrapper is lent, which takes longer and which no
        # finalizer should need.
        if self._thread_ident != _get_ident():
            super().validate_thread_sharing()

    def get_autocommit(self) -> bool:
        # Without a look: Django asks this at the end of a request, when a new connection would be
        # of no use.
        return self.autocommit if self.connection is not None else super().get_autocommit()

    def set_autocommit(
        self,
        autocommit: bool,  # noqa: FBT001
        force_begin_transaction_with_broken_autocommit: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        with self.guard:
            super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)

    # After use

    def close(self) -> None:
        with self.guard:
            if self.lease is not None and self.lease.pid != os.getpid():
                self.leave_to_parent()
            super().close()

    def _close(self) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.end()
        super()._close()

    def close_if_unusable_or_obsolete(self) -> None:
        with self.guard:
            if self.lease is not None and self.lease.pid != os.getpid():
                self.leave_to_parent()
            if self.connection is None or self.replace_if_ended():
                return
            super().close_if_unusable_or_obsolete()

    # What the reclaimer calls

    def tend(self, now: float) -> float:
        """Report and close what is due at *now*, and return when to come next."""
        lease = self.lease
        return (
            math.inf
            if lease is None
            else min(lease.report_if_held(now), self._close_if_idle(lease, now))
        )

    def leave_to_parent(self) -> None:
        """In a forked child: forget the session, which is the parent's."""
        self.guard = threading.RLock()
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.leave_to_parent()
            self.connection = None
            if self.in_atomic_block:
                # The transaction is the parent's as well: go on as after a close() in an atomic
                # block.
                self.closed_in_transaction = True
                self.needs_rollback = True

    def _close_if_idle(self, lease: Lease, now: float) -> float:
        idle_at = lease.used_at + lease.idle_for_s
        if now < idle_at:
            return idle_at
        # Whatever spares it now: if it were used at this moment, it would be idle then, and not
        # before.
        again_at = now + lease.idle_for_s
        # Behind a pooler that shares sessions nothing can be held, and the question would reach
        # somebody else's.
        shared = conf.current().pooler.get(self.alias) == "transaction"
        if lease.asked_about == lease.used_at or not self.guard.acquire(blocking=False):
            return again_at
        try:
            if (
                self.lease is not lease
                or lease.used_at + lease.idle_for_s > now
                or not self._is_at_rest(lease)
            ):
                return again_at
            lease.asked_about = lease.used_at
            pinned = bool(self.conn_guard_pins) or lease.driver_connection.has_own_adapters()
            if (pinned or not shared) and lease.holds_state(pinned=pinned):
                return again_at
            closing.abandon(self)
        finally:
            self.guard.release()
        return math.inf

    def _is_at_rest(self, lease: Lease) -> bool:
        # Where the settings have autocommit off, a connection between two transactions may be in
        # the middle of a task.
        return (
            lease.pid == os.getpid()
            and self.settings_dict["AUTOCOMMIT"]
            and not self._thread_sharing_count
            and not lease.has_open_cursor()
            and lease.driver_connection.is_at_rest()
        )


def _leave_pools_to_parent() -> None:
    """In a forked child: forget the pools, whose threads were not copied and whose sessions are the
    parent's.
    """
    Guarded._pools_pid = os.getpid()
    for pool in Guarded._connection_pools.values():
        driver.keep_for_parent(pool)
        for raw in list(getattr(pool, "_pool", ())):
            driver.leave_to_parent(raw)
    Guarded._connection_pools.clear()


def _revive(sender: Any, **kwargs: object) -> None:
    """Receive ``request_started``: give a thread whose atomic block was closed and never left a new
    wrapper.

    Not under the test client, whose caller may still be in that block.
    """
    if getattr(sender, "__module__", "") == "django.test.client":
        return
    for wrapper in django_connections.all(initialized_only=True):
        if (
            isinstance(wrapper, Guarded)
            and wrapper.closed_in_transaction
            and not wrapper._thread_sharing_count
        ):
            del django_connections[wrapper.alias]


def _end_request(sender: Any, **kwargs: object) -> None:
    """Receive ``request_finished``: end the transactions that the request left open by a raw BEGIN.

    Django does so where autocommit was switched off. Not under the test client, which names no
    sender; with the middleware there is nothing left to do.
    """
    if sender is None or scopes.current_scope() is not None:
        return
    for wrapper in django_connections.all(initialized_only=True):
        if (
            isinstance(wrapper, Guarded)
            and wrapper.connection is not None
            and wrapper.settings_dict["AUTOCOMMIT"]
            and not wrapper.in_atomic_block
            and closing.in_transaction(wrapper)
        ):
            message = (
                "A request left a transaction open on %r; it is rolled back with its connection."
            )
            logger.warning(message, wrapper.alias)
            wrapper.close()


# Django imports an engine when it makes its first wrapper, so the engine works without the app as
# well.
ownership.watch()
signals.request_started.connect(_revive, dispatch_uid="conn_guard.engine")
signals.request_finished.connect(_end_request, dispatch_uid="conn_guard.engine")
