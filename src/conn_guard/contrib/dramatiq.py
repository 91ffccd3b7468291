"""Dramatiq: a middleware that closes a message's connections when its actor has ended.

It is the first in the broker's list of middleware, so that it also closes what the others opened.
"""

from __future__ import annotations

import threading
from typing import Any

from dramatiq.middleware import Middleware

from conn_guard.connections import ownership
from conn_guard.connections.jobs import JobScope


class ConnectionGuardMiddleware(Middleware):  # type: ignore[misc]  # Any where Dramatiq is absent
    """Closes the connections of a message, and rolls back a transaction that it left open."""

    def __init__(self) -> None:
        ownership.watch()
        self._running = threading.local()

    def before_process_message(self, broker: Any, message: Any) -> None:
        """Begin the scope of *message* on its worker's thread."""
        self._running.scope = JobScope(lambda: message.actor_name)

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        """Close what is open on this thread; the actor returned or raised."""
        scope = vars(self._running).pop("scope", None)
        if scope is not None:
            scope.finish()

    def after_skip_message(self, broker: Any, message: Any) -> None:
        """Close what is open on this thread; a middleware skipped the actor."""
        self.after_process_message(broker, message)
