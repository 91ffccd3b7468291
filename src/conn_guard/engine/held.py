"""The reports of REPORT_HELD_FOR and HELD_FOR_ACTION, on the logger ``conn_guard.leaks``."""

from __future__ import annotations

import logging
import math
import os
import threading
import time

from conn_guard import stacks
from conn_guard.connections import events, scopes

logger = logging.getLogger("conn_guard.leaks")


class Opener:
    """The view and the stack that opened a connection; made only where REPORT_HELD_FOR is set."""

    def __init__(self, alias: str, backend_pid: int, held_for_s: float, *, closes: bool) -> None:
        self.alias = alias
        self.backend_pid = backend_pid
        self.view = scopes.current_view()
        self.ident = threading.get_ident()
        self.stack = stacks.own_stack(stacks.callers())
        self.opened_at = time.monotonic()
        self.held_for_s = held_for_s
        self.report_at = self.opened_at + held_for_s
        self.close_at = self.report_at if closes else math.inf
        self.reported = False
        self.closed_by_engine = False

    def report(self) -> None:
        """Warn that the connection is held too long, and show where it was opened and is held."""
        self.reported = True
        events.report("held_too_long", self.alias)
        logger.warning(
            "The connection %r to session %d is held for %.1f s by process %d, view %s. "
            "It was opened by:\n%s%s",
            self.alias,
            self.backend_pid,
            self._age(),
            os.getpid(),
            self.view or "unknown",
            "".join(self.stack.format()),
            stacks.where_is(self.ident).rstrip(),
        )

    def report_closed(self) -> None:
        """Log that the reported connection was closed, by the engine or after all."""
        logger.warning(
            "The connection %r to session %d, held too long, was closed %s, after %.1f s.",
            self.alias,
            self.backend_pid,
            "by HELD_FOR_ACTION" if self.closed_by_engine else "after all",
            self._age(),
        )

    def _age(self) -> float:
        return time.monotonic() - self.opened_at
