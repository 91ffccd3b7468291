"""The reports of REPORT_HELD_FOR, on the logger ``conn_guard.leaks``."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
import traceback
from types import FrameType

from conn_guard.connections import scopes

logger = logging.getLogger("conn_guard.leaks")


class Opener:
    """The view and the stack that opened a connection; made only where REPORT_HELD_FOR is set."""

    def __init__(self, alias: str, backend_pid: int, held_for_s: float) -> None:
        self.alias = alias
        self.backend_pid = backend_pid
        self.view = scopes.current_view()
        callers = itertools.dropwhile(_is_internal, traceback.walk_stack(sys._getframe()))
        # The text of the lines is read only if a report is written.
        self.stack = traceback.StackSummary.extract(callers, lookup_lines=False)
        self.opened_at = time.monotonic()
        self.report_at = self.opened_at + held_for_s
        self.reported = False

    def report(self) -> None:
        """Warn that the connection is held too long, with the stack that opened it."""
        self.reported = True
        self.stack.reverse()
        logger.warning(
            "The connection %r to session %d is held for %.1f s by process %d, view %s. "
            "It was opened by:\n%s",
            self.alias,
            self.backend_pid,
            self._age(),
            os.getpid(),
            self.view or "unknown",
            "".join(self.stack.format()),
        )

    def report_closed(self) -> None:
        """Log that the reported connection was closed after all."""
        logger.warning(
            "The connection %r to session %d, held too long, was closed after all, after %.1f s.",
            self.alias,
            self.backend_pid,
            self._age(),
        )

    def _age(self) -> float:
        return time.monotonic() - self.opened_at


_INTERNAL = ("conn_guard.engine", "django.db.backends", "django.utils.asyncio")


def _is_internal(caller: tuple[FrameType, int]) -> bool:
    return str(caller[0].f_globals.get("__name__")).startswith(_INTERNAL)
