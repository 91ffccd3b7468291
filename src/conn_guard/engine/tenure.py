"""One driver connection while a wrapper has it: this room holds what the engine notes of it."""

from __future__ import annotations

import math
import os
import time
from typing import Any
from weakref import finalize, ref

from conn_guard import postgres
from conn_guard.engine import driver, keeper
from conn_guard.engine.leaks import Opener
from conn_guard.engine.statements import Leaves, leaves

_MANY_CURSORS = 16


class Tenure:
    """Begins when a wrapper gets a driver connection, and ends when it closes it, drops it or is dropped itself."""

    def __init__(self, wrapper: Any, wire: driver.Wire, *, idle_for_s: float, opener: Opener | None) -> None:
        self.raw = wire.raw
        self.wire = wire
        self.pid = os.getpid()
        self.key = id(wrapper)
        self.idle_for_s = idle_for_s
        self.opener = opener
        self.used_at = time.monotonic()
        self.asked_about: float | None = None
        self.leaves = Leaves.NOTHING
        self.at_connect: frozenset[str] = frozenset()
        self.replaced = False
        self.cursors: list[ref[Any]] = []
        self.dropped = finalize(wrapper, self._drop)
        self.dropped.atexit = False

    @property
    def made_state(self) -> bool:
        """Whether a statement was seen that leaves something behind in the session."""
        return self.leaves is not Leaves.NOTHING

    def opened(self, cursor: object) -> None:
        """Note an open cursor, for as long as anybody holds it."""
        if len(self.cursors) >= _MANY_CURSORS:
            self.cursors = [each for each in self.cursors if each() is not None]
        self.cursors.append(ref(cursor))

    def has_open_cursor(self) -> bool:
        """Return whether somebody may go on with a cursor, a server-side one above all."""
        cursors = [each() for each in self.cursors]
        return any(cursor is not None and not cursor.closed for cursor in cursors)

    def runs(self, sql: object) -> None:
        """Note what a statement is about to leave behind in the session."""
        if self.leaves is Leaves.UNASKABLE_STATE:
            return
        left = leaves(sql if type(sql) is str else self._text(sql))
        if left is not Leaves.NOTHING:
            self.leaves = left

    def connected(self, **settings: Any) -> None:
        """Note what a new session holds, and would hold again if another one took its place."""
        if self.made_state:
            # A receiver of connection_created made it, and only the server can tell what it is.
            self.at_connect = postgres.held_state(self.raw)
            self.leaves = Leaves.NOTHING
        else:
            self.at_connect = postgres.held_after_connect(**settings)

    def holds_state(self, *, pinned: bool) -> bool:
        """Ask the session whether anything would be lost with it, and let its last statement say so."""
        try:
            if not pinned and self.leaves is not Leaves.UNASKABLE_STATE:
                if postgres.held_state(self.raw) <= self.at_connect:
                    return False
                self.leaves = Leaves.STATE
            postgres.mark_held_state(self.raw)
        except driver.DriverError:
            # It ended meanwhile: its connection may go, unless somebody is to learn of the loss.
            return not self.wire.is_dead() or pinned or self.made_state
        return True

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
        self.wire.release()
        self._forget()

    def leave_to_parent(self) -> None:
        """In a forked child: the session is the parent's."""
        self.dropped.detach()
        self.wire.leave_to_parent()
        keeper.forget(self.key)

    def _drop(self) -> None:
        """The wrapper was dropped with its connection open. This is a finalizer: see the keeper."""
        if self.pid != os.getpid():
            driver.keep_open_for_parent(self.raw)
            return
        self._forget()
        if self.wire.pool is not None:
            # The pool's lock may be held by this very thread.
            keeper.later(self.wire.give_back)
        else:
            self.wire.give_back()

    def _forget(self) -> None:
        keeper.forget(self.key)
        if self.opener is not None and self.opener.reported:
            keeper.later(self.opener.report_closed)

    def _text(self, sql: Any) -> str:
        if isinstance(sql, (bytes, bytearray)):
            return sql.decode(errors="replace")
        return str(sql.as_string(self.raw)) if hasattr(sql, "as_string") else str(sql)
