"""Records the connections that a test opens, and finds those that stay open."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from typing import Any

from conn_guard import pages, stacks

GRACE_S = 2.0
"""Seconds to wait for threads that are about to close their connection."""


class Opened:
    """A connection that a test opened, with its thread and stack; holds only weak references."""

    def __init__(self, wrapper: Any) -> None:
        frames = stacks.callers()
        info = getattr(wrapper.connection, "info", None)
        self.alias: str = wrapper.alias
        self.settings: dict[str, Any] = wrapper.settings_dict
        self.is_postgresql = wrapper.vendor == "postgresql"
        self.wrapper = weakref.ref(wrapper)
        self.raw = _weak(wrapper.connection)
        self.backend_pid: int | None = getattr(info, "backend_pid", None)
        self.ident = threading.get_ident()
        # current_thread() would register a dummy thread if this one was not started by Python.
        self.thread = _weak(
            next((each for each in threading.enumerate() if each.ident == self.ident), None)
        )
        self.thread_name = getattr(self.thread(), "name", "unknown to Python")
        self.is_server_thread = any(
            frame.f_code is ThreadingMixIn.process_request_thread.__code__ for frame in frames
        )
        self.stack = stacks.own_stack(frames)
        self.is_latest = True

    def is_leaked(self) -> bool:
        """Return whether this connection is open without a known reason to keep it open."""
        wrapper = self.wrapper()
        if wrapper is None or wrapper.connection is None or not self.is_latest:
            return self._is_dropped()
        return not (
            wrapper.allow_thread_sharing
            # Django never closes a database in memory.
            or (wrapper.vendor == "sqlite" and wrapper.is_in_memory_db())
            # A server's thread keeps a persistent connection while its client is connected.
            or (self.is_server_thread and self.is_alive())
            or _is_current(wrapper)
        )

    def _is_dropped(self) -> bool:
        """Return whether the driver's connection is open without a wrapper and outside a pool."""
        is_unpooled_engine = self.settings.get("ENGINE", "").startswith(("django.", "conn_guard."))
        if not is_unpooled_engine or (self.settings.get("OPTIONS") or {}).get("pool"):
            return False
        return not getattr(self.raw(), "closed", True)

    def is_alive(self) -> bool:
        """Return whether the thread that opened the connection is alive."""
        thread = self.thread()
        return thread is not None and thread.is_alive()


class Watch:
    """The connections that a test opens, from its first fixture's setup to its last's teardown."""

    def __init__(self) -> None:
        from django.db.backends.signals import connection_created

        self.opened: list[Opened] = []
        self.fails = True
        self.pauses = 0
        connection_created.connect(self._note)

    def _note(self, connection: Any, **kwargs: object) -> None:
        if self.pauses:
            return
        # Django goes on with a half-made connection if a receiver raises.
        with contextlib.suppress(Exception):
            for earlier in self.opened:
                earlier.is_latest &= earlier.wrapper() is not connection
            self.opened.append(Opened(connection))

    def end(self) -> None:
        """Stop recording."""
        from django.db.backends.signals import connection_created

        connection_created.disconnect(self._note)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing while the block runs."""
        self.pauses += 1
        try:
            yield
        finally:
            self.pauses -= 1

    def leaks(self) -> list[Opened]:
        """Return the leaked connections; wait up to GRACE_S for other threads to close theirs."""
        here = threading.get_ident()
        deadline = time.monotonic() + GRACE_S
        while leaks := [each for each in self.opened if each.is_leaked()]:
            if time.monotonic() > deadline or all(each.ident == here for each in leaks):
                break
            time.sleep(0.01)
        return [each for each in leaks if _is_on_server(each)]


def report(leaks: list[Opened]) -> str:
    """Return the message that lists *leaks* with the stacks that opened them."""
    count = "a connection" if len(leaks) == 1 else f"{len(leaks)} connections"
    parts = [f"The test left {count} open."]
    for leak in leaks:
        session = f", session {leak.backend_pid}" if leak.backend_pid else ""
        parts.append(
            f"{leak.alias!r}{session}, opened in thread {leak.thread_name!r}"
            f" by:\n{''.join(leak.stack.format())}"
        )
    parts.append(
        "HINT: Close it where it was opened: decorate that function with"
        f" conn_guard.closing_connections. See {pages.address('how-to/test-for-leaks.md')}."
    )
    return "\n".join(parts)


def _is_current(wrapper: Any) -> bool:
    """Return whether *wrapper* is this thread's own for its alias; the test runner closes it."""
    from django.db import connections

    return any(each is wrapper for each in connections.all(initialized_only=True))


def _is_on_server(leak: Opened) -> bool:
    """Return whether the server still has the session; if not, nothing is leaked."""
    if leak.backend_pid is None or not leak.is_postgresql:
        return True
    from conn_guard.sessions import server

    return not server.has_left(leak.alias, leak.settings, leak.backend_pid)


def _weak(referent: Any) -> Callable[[], Any]:
    """Return a weak reference to *referent*, or to None for a type without weak references."""
    try:
        return weakref.ref(referent)
    except TypeError:
        return lambda: None
