"""A lease: one driver connection while a wrapper has it, and the engine's notes about it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any
from weakref import finalize, ref

from conn_guard.connections import tracking
from conn_guard.engine import driver, reclaimer, state
from conn_guard.engine.held import Opener
from conn_guard.engine.statements import Leaves, read

# A session that was used within these seconds is not checked: it was not idle long enough for the
# server to have a reason to end it.
_CHECK_AFTER_S = 0.001


def _no_cursor() -> None:
    """Stand in for the weak reference to a cursor before there is a cursor."""


class Lease:
    """A driver connection in the hands of one wrapper.

    It begins when the wrapper gets the connection. It ends when the wrapper closes the connection,
    loses it to a fork, or is garbage-collected.
    """

    def __init__(
        self, wrapper: Any, driver_connection: driver.DriverConnection, *, idle_for_s: float
    ) -> None:
        self.raw = driver_connection.raw
        self.driver_connection = driver_connection
        self.pid = os.getpid()
        self.key = id(wrapper)
        self.idle_for_s = idle_for_s
        self.opener: Opener | None = None
        self.used_at = time.monotonic()
        # The driver of a dead session can't tell whether it was in a transaction. So where a
        # transaction may be open, every statement is preceded by a check.
        self.check_after_s = _CHECK_AFTER_S if wrapper.settings_dict["AUTOCOMMIT"] else 0.0
        # The used_at of the idle period in which the session was asked for its state.
        self.asked_at_use: float | None = None
        self.made_state = False
        self.made_known_state = False
        self.made_unlisted_state = False
        self.made_state_in_setup = False
        self.is_connected = False
        self.state_at_connect: frozenset[str] = frozenset()
        self.replaced = False
        self.cursor: Callable[[], Any] = _no_cursor
        self.older_cursors: list[Callable[[], Any]] = []
        self.finalizer = finalize(wrapper, self._finalize)
        self.finalizer.atexit = False

    def track_cursor(self, cursor: object) -> None:
        """Remember an open cursor by a weak reference."""
        # The cursor before is closed by now in most cases, so the list mostly stays empty.
        before = self.cursor()
        if before is not None and not before.closed:
            self.older_cursors = [each for each in self.older_cursors if each() is not None]
            self.older_cursors.append(self.cursor)
        self.cursor = ref(cursor)

    def has_open_cursor(self) -> bool:
        """Return whether the application still holds an open cursor of this connection."""
        cursors = [each() for each in (*self.older_cursors, self.cursor)]
        return any(cursor is not None and not cursor.closed for cursor in cursors)

    def note_statement(self, sql: object) -> None:
        """Note the state that the statement *sql* is about to leave in the session."""
        left = self._read(sql)
        self.made_state = self.made_state or left not in (Leaves.NOTHING, Leaves.TRANSACTION)
        if left in (Leaves.STATE, Leaves.UNLISTED_STATE):
            self.made_known_state = True
        self.made_unlisted_state = self.made_unlisted_state or left is Leaves.UNLISTED_STATE
        if left not in (Leaves.NOTHING, Leaves.UNKNOWN):
            self.check_after_s = min(self.check_after_s, 0.0)

    def note_setup(self, sql: object) -> None:
        """Note that the statement *sql* of a subclass is about to set up the session.

        A subclass may do so on one connection and not on the next. Django's own statements for the
        time zone and for ``assume_role`` run on every connection.
        """
        text = sql.lower() if isinstance(sql, str) else ""
        if not text.startswith(("set role ", "select set_config('timezone'")):
            left = self._read(sql)
            self.made_state_in_setup |= left not in (Leaves.NOTHING, Leaves.TRANSACTION)

    def note_connected(self, **settings: Any) -> None:
        """Note the state of a new session, which any session after it would have as well."""
        self.driver_connection.note_connected()
        self.state_at_connect = state.held_after_connect(
            **settings, reported=self.driver_connection.reported_at_connect()
        )
        if self.made_state and self.idle_for_s < math.inf and self.raw.autocommit:
            # A receiver of connection_created made state, and only the server can tell which.
            self.state_at_connect = state.held_state(self.raw)
        self.made_state = self.made_state_in_setup
        self.made_known_state = self.made_unlisted_state = False
        self.is_connected = True

    def holds_state(self, *, pinned: bool) -> bool:
        """Ask the session whether it holds state; if so, mark it by its last statement."""
        try:
            if not pinned and not self.made_unlisted_state:
                if state.held_state(self.raw) <= self.state_at_connect:
                    return False
                self.made_state = True
            state.mark_held_state(self.raw)
        except driver.DriverError:
            # The session has ended meanwhile. Its connection is kept if state was lost with it:
            # the next caller must get the error.
            return not self.driver_connection.is_closed() or pinned or self.made_state
        return True

    def due_at(self) -> float:
        """Return when the connection becomes idle or held for too long, on the monotonic clock."""
        return min(
            self.used_at + self.idle_for_s, self.opener.report_at if self.opener else math.inf
        )

    def report_if_held(self, now: float) -> float:
        """Report once that the connection is held too long; return when to check next."""
        if self.opener is None or self.opener.reported:
            return math.inf
        if now >= self.opener.report_at:
            self.opener.report()
            return math.inf
        return self.opener.report_at

    def end(self) -> None:
        """End the lease, because the wrapper closes its connection."""
        self.finalizer.detach()
        self.driver_connection.detach()
        self._unregister()

    def leave_to_parent(self) -> None:
        """In a forked child: end the lease and leave the session to the parent."""
        self.finalizer.detach()
        driver.leave_to_parent(self.raw)
        reclaimer.unregister(self.key)

    def _finalize(self) -> None:
        """Give the connection of a garbage-collected wrapper back; runs inside a finalizer."""
        if self.pid != os.getpid():
            driver.leave_to_parent(self.raw)
            return
        tracking.note_ended(self.raw, "dropped")
        if self.driver_connection.pool is not None:
            # This thread may hold the pool's lock at this moment.
            reclaimer.submit(self.driver_connection.give_back)
        else:
            self.driver_connection.give_back()
        self._unregister()

    def _unregister(self) -> None:
        # Last, because after a fork the reclaimer goes on only for what is registered or submitted.
        if self.opener is not None and self.opener.reported:
            reclaimer.submit(self.opener.report_closed)
        reclaimer.unregister(self.key)

    def _read(self, sql: Any) -> Leaves:
        if isinstance(sql, str):
            return read(sql)
        if isinstance(sql, (bytes, bytearray)):
            return read(sql.decode(errors="replace"))
        # An object without as_string(), such as a template string, may hold any statement.
        return read(sql.as_string(self.raw)) if hasattr(sql, "as_string") else Leaves.STATE
