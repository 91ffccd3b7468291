"""Findings of a serving process: connections that are never used again, and undeclared poolers.

Each is logged once a process, on the logger ``conn_guard.checks``. A request costs one addition and
one test, until its question is settled. The server is never asked.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter, defaultdict
from typing import Any

from django.core.signals import request_started
from django.db.backends.signals import connection_created

from conn_guard.checks.project import Alias, Project
from conn_guard.checks.registry import log, message_of
from conn_guard.checks.startup import is_test
from conn_guard.text import shown

logger = logging.getLogger("conn_guard.checks")

ENOUGH_REQUESTS = 100
"""Requests after which a process is judged."""
SETTLED_REQUESTS = 1000
"""Requests after which a process whose connections look useful is no longer watched."""
NEVER_REUSED = 0.9
"""Connections per request at which persistence is useless; not 1, as some requests don't query."""
MAX_PID = 4194304
"""The largest process id of Linux (2**22); macOS and Windows stay below. Source: proc(5)."""


class Watch:
    """The requests and connections of one process, and the questions that are still open."""

    def __init__(self) -> None:
        self.questions = {"pooler", "reuse"}
        self.requests = 0
        self.is_asgi = False
        self.aliases: dict[str, Alias] = {}
        self.opened: Counter[str] = Counter()
        self.threads: defaultdict[str, set[int]] = defaultdict(set)

    def connect(self) -> None:
        """Listen to connections, and to requests where an alias keeps its connections."""
        connection_created.connect(self.on_connection, dispatch_uid="conn_guard.checks.runtime")
        if any(alias.engine.connects and alias.persistent for alias in Project.current().aliases):
            request_started.connect(self.on_request, dispatch_uid="conn_guard.checks.runtime")
        else:
            self._close("reuse")

    def on_request(self, sender: object, **kwargs: object) -> None:
        """Receive ``request_started``; Django passes a scope under ASGI, an environ under WSGI."""
        self.requests += 1
        if self.requests > SETTLED_REQUESTS:
            request_started.disconnect(dispatch_uid="conn_guard.checks.runtime")
            self._close("reuse")
        if not self.is_asgi and "scope" in kwargs:
            self.is_asgi = not is_test(sender)

    def on_connection(self, connection: Any, **kwargs: object) -> None:
        """Receive ``connection_created``; never raises."""
        # An exception here would leave a half-made connection in use.
        try:
            alias = self.aliases.get(connection.alias)
            if alias is None:
                alias = self.aliases[connection.alias] = Alias(
                    Project.current(), connection.alias, connection.settings_dict
                )
                self._look_for_pooler(alias, connection)
            if "reuse" in self.questions and alias.persistent and not alias.pools:
                self._look_for_reuse(alias)
        except Exception:
            logger.exception(
                "The connection of %r was not looked at.", getattr(connection, "alias", None)
            )

    def _look_for_pooler(self, alias: Alias, connection: Any) -> None:
        """Judge by the pid received at login."""
        # Asking the server for its own pid would cost every process a round trip. A pooler reports
        # 32 random bits for a pid, and 999 of 1,000 such numbers are too large for a process id.
        if connection.vendor != "postgresql" or alias.name in alias.project.conn_guard.pooler:
            return
        pid = connection.connection.info.backend_pid
        if not 0 < pid <= MAX_PID and self._close("pooler"):
            from conn_guard.checks.rules.server import declare_pooler

            self._say(
                "I302",
                f"{alias} goes through a pooler: the pid received at login, {pid}, can't be a"
                " process id.",
                declare_pooler(alias),
            )

    def _look_for_reuse(self, alias: Alias) -> None:
        """Judge by the kind of server, or by the connections per request."""
        name = str(alias.name)
        because = None
        if self.is_asgi:
            # Where the settings name ASGI alone, the static W120 has been reported.
            because = None if alias.project.served_by == "ASGI" else "this process serves ASGI"
        elif _is_green():
            because = "this process runs a greenlet for each request"
        else:
            self.opened[name] += 1
            self.threads[name].add(threading.get_ident())
            if self.requests < ENOUGH_REQUESTS:
                return
            # Each thread of a large pool opens a first connection too, which proves nothing.
            if self.opened[name] >= max(NEVER_REUSED * self.requests, 3 * len(self.threads[name])):
                because = (
                    f"{self.opened[name]} connections were opened for {self.requests} requests"
                )
            elif self.requests < SETTLED_REQUESTS:
                return
        request_started.disconnect(dispatch_uid="conn_guard.checks.runtime")
        if self._close("reuse") and because:
            from conn_guard.checks.rules.persistence import without_persistence

            self._say(
                "W120",
                f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}, but {because}: no later request"
                " finds a connection again.",
                without_persistence(alias),
            )

    def _close(self, question: str) -> bool:
        """Close *question* and return whether it was open; true for one thread alone."""
        try:
            self.questions.remove(question)
        except KeyError:
            return False
        return True

    def _say(self, id: str, message: str, hint: str) -> None:  # noqa: A002
        said = message_of(id, message, hint)
        if not said.is_silenced() and not is_test():
            log(said)


def _is_green() -> bool:
    """Return whether gevent or eventlet has replaced threads with greenlets."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    return bool(
        (gevent and gevent.is_module_patched("threading"))
        or (eventlet and eventlet.is_monkey_patched("thread"))
    )


_watch = Watch()


def watch() -> None:
    """Watch this process unless CHECK_AT_STARTUP is None; a second call changes nothing."""
    if Project.current().conn_guard.check_at_startup is not None:
        _watch.connect()
