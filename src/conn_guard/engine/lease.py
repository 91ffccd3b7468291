"""One driver connection while a wrapper has it: this room holds what the engine notes of it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any
from weakref import finalize, ref

from conn_guard.engine import driver, reclaimer, state
from conn_guard.engine.held import Opener
from conn_guard.engine.statements import Leaves, read

# Used again within these seconds, a session was not at rest: nobody had a reason to end it, so
# looking would be waste.
_BRISK_S = 0.001


def _nothing() -> None:
    """Stand in for a reference to a cursor before there is one."""


class Lease:
    """Begins when a wrapper gets a driver connection, and ends when it closes it, drops it or is
    dropped itself.
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
        # The driver of a dead session can't say whether it was in a transaction, so where one may
        # be open every look counts.
        self.brisk_s = _BRISK_S if wrapper.settings_dict["AUTOCOMMIT"] else 0.0
        self.asked_about: float | None = None
        self.made_state = False
        self.unaskable = False
        self.is_connected = False
        self.at_connect: frozenset[str] = frozenset()
        self.replaced = False
        self.cursor: Callable[[], Any] = _nothing
        self.older_cursors: list[Callable[[], Any]] = []
        self.dropped = finalize(wrapper, self._drop)
        self.dropped.atexit = False

    def opened(self, cursor: object) -> None:
        """Note an open cursor, for as long as anybody holds it; mostly the one before is closed by
        then.
        """
        before = self.cursor()
        if before is not None and not before.closed:
            self.older_cursors = [each for each in self.older_cursors if each() is not None]
            self.older_cursors.append(self.cursor)
        self.cursor = ref(cursor)

    def has_open_cursor(self) -> bool:
        """Return whether somebody may go on with a cursor, a server-side one above all."""
        cursors = [each() for each in (*self.older_cursors, self.cursor)]
        return any(cursor is not None and not cursor.closed for cursor in cursors)

    def runs(self, sql: object) -> None:
        """Note what a statement is about to leave behind in the session."""
        left = self._read(sql)
        self.made_state = self.made_state or left not in (Leaves.NOTHING, Leaves.TRANSACTION)
        self.unaskable = self.unaskable or left is Leaves.UNASKABLE_STATE
        if left not in (Leaves.NOTHING, Leaves.UNKNOWN):
            self.brisk_s = min(self.brisk_s, 0.0)

    def connected(self, **settings: Any) -> None:
        """Note what a new session holds, and would hold again if another one took its place."""
        self.driver_connection.connected()
        self.at_connect = state.held_after_connect(**settings)
        if self.made_state and self.idle_for_s < math.inf and self.raw.autocommit:
            # A receiver of connection_created made it, and only the server can tell what it is.
            self.at_connect = state.held_state(self.raw)
        self.made_state = self.unaskable = False
        self.is_connected = True

    def holds_state(self, *, pinned: bool) -> bool:
        """Ask the session whether anything would be lost with it, and let its last statement say
        so.
        """
        try:
            if not pinned and not self.unaskable:
                if state.held_state(self.raw) <= self.at_connect:
                    return False
                self.made_state = True
            state.mark_held_state(self.raw)
        except driver.DriverError:
            # It ended meanwhile: its connection may go, unless somebody is to learn of the loss.
            return not self.driver_connection.is_dead() or pinned or self.made_state
        return True

    def due_at(self) -> float:
        """Return when this connection is idle for too long or held for too long, whichever comes
        first.
        """
        return min(
            self.used_at + self.idle_for_s, self.opener.report_at if self.opener else math.inf
        )

    def report_if_held(self, now: float) -> float:
        """Report a connection that is held too long, once, and return when to come next."""
        if self.opener is None or self.opener.reported:
            return math.inf
        if now >= self.opener.report_at:
            self.opener.report()
            return math.inf
        return self.opener.report_at

    def end(self) -> None:
        """The wrapper closes its connection."""
        self.dropped.detach()
        self.driver_connection.release()
        self._forget()

    def leave_to_parent(self) -> None:
        """In a forked child: the session is the parent's."""
        self.dropped.detach()
        driver.leave_to_parent(self.raw)
        reclaimer.forget(self.key)

    def _drop(self) -> None:
        """The wrapper was dropped with its connection open. This is a finalizer: see the
        reclaimer.
        """
        if self.pid != os.getpid():
            driver.leave_to_parent(self.raw)
            return
        self._forget()
        if self.driver_connection.pool is not None:
            # The pool's lock may be held by this very thread.
            reclaimer.later(self.driver_connection.give_back)
        else:
            self.driver_connection.give_back()

    def _forget(self) -> None:
        reclaimer.forget(self.key)
        if self.opener is not None and self.opener.reported:
            reclaimer.later(self.opener.report_closed)

    def _read(self, sql: Any) -> Leaves:
        if isinstance(sql, str):
            return read(sql)
        if isinstance(sql, (bytes, bytearray)):
            return read(sql.decode(errors="replace"))
        # Whatever else a driver takes, such as a template string, tells nobody its text.
        return read(sql.as_string(self.raw)) if hasattr(sql, "as_string") else Leaves.STATE
