"""Watches what a test opens, and tells what of it stays open."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from types import FrameType
from typing import Any

GRACE_S = 2.0
"""How long a thread that is about to close its connection is given, in seconds."""


class Opened:
    """A connection that was opened during a test, and by whom; it keeps none of them alive."""

    def __init__(self, wrapper: Any) -> None:
        frames = [frame for frame, _ in traceback.walk_stack(sys._getframe(1))]
        info = getattr(wrapper.connection, "info", None)
        self.alias: str = wrapper.alias
        self.settings: dict[str, Any] = wrapper.settings_dict
        self.is_postgresql = wrapper.vendor == "postgresql"
        self.wrapper = weakref.ref(wrapper)
        self.raw = _weak(wrapper.connection)
        self.backend_pid: int | None = getattr(info, "backend_pid", None)
        self.ident = threading.get_ident()
        # Not current_thread(), which would register a thread that is not Python's own for ever.
        self.thread = _weak(
            next((each for each in threading.enumerate() if each.ident == self.ident), None)
        )
        self.thread_name = getattr(self.thread(), "name", "unknown to Python")
        self.serves = any(
            frame.f_code is ThreadingMixIn.process_request_thread.__code__ for frame in frames
        )
        self.stack = _stack(frames)
        self.is_latest = True

    def is_left(self) -> bool:
        """Return whether this connection is open and nobody has a reason to keep it."""
        wrapper = self.wrapper()
        if wrapper is None or wrapper.connection is None or not self.is_latest:
            return self._is_dropped()
        return not (
            wrapper.allow_thread_sharing
            # Django never closes a database in memory.
            or (wrapper.vendor == "sqlite" and wrapper.is_in_memory_db())
            # A server's thread keeps what CONN_MAX_AGE says for as long as its client stays.
            or (self.serves and self.is_alive())
            or _is_current(wrapper)
        )

    def _is_dropped(self) -> bool:
        """Return whether the driver's connection is open though its wrapper has let go of it, and
        no pool has it back.
        """
        keeps_no_pool = self.settings.get("ENGINE", "").startswith(("django.", "conn_guard."))
        if not keeps_no_pool or (self.settings.get("OPTIONS") or {}).get("pool"):
            return False
        return not getattr(self.raw(), "closed", True)

    def is_alive(self) -> bool:
        """Return whether the thread that opened it lives on."""
        thread = self.thread()
        return thread is not None and thread.is_alive()


class Watch:
    """What a test opens, from the setup of its first fixture to the teardown of its last."""

    def __init__(self) -> None:
        from django.db.backends.signals import connection_created

        self.opened: list[Opened] = []
        self.fails = True
        self.away = 0
        connection_created.connect(self._note)

    def _note(self, connection: Any, **kwargs: object) -> None:
        if self.away:
            return
        # An error here would leave a half-made connection in use.
        with contextlib.suppress(Exception):
            for earlier in self.opened:
                earlier.is_latest &= earlier.wrapper() is not connection
            self.opened.append(Opened(connection))

    def end(self) -> None:
        """Note nothing any more."""
        from django.db.backends.signals import connection_created

        connection_created.disconnect(self._note)

    @contextlib.contextmanager
    def looking_away(self) -> Iterator[None]:
        """Note nothing while the block runs."""
        self.away += 1
        try:
            yield
        finally:
            self.away -= 1

    def leaks(self) -> list[Opened]:
        """Return what stays open, once whoever is about to close it has had the time."""
        here = threading.get_ident()
        deadline = time.monotonic() + GRACE_S
        while leaks := [each for each in self.opened if each.is_left()]:
            if time.monotonic() > deadline or all(each.ident == here for each in leaks):
                break
            time.sleep(0.01)
        return [each for each in leaks if _is_on_server(each)]


def report(leaks: list[Opened]) -> str:
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
        " conn_guard.closing_connections. See docs/how-to/test-for-leaks.md."
    )
    return "\n".join(parts)


def _is_current(wrapper: Any) -> bool:
    """Return whether *wrapper* is this thread's own connection of its alias, which the tests'
    runner looks after.
    """
    from django.db import connections

    return any(each is wrapper for each in connections.all(initialized_only=True))


def _is_on_server(leak: Opened) -> bool:
    """Return whether the server still has the session; where it ended it itself, nothing is
    left.
    """
    if leak.backend_pid is None or not leak.is_postgresql:
        return True
    from conn_guard.sessions import server

    return not server.has_left(leak.alias, leak.settings, leak.backend_pid)


def _weak(referent: Any) -> Callable[[], Any]:
    """Return a weak reference to *referent*, or to nothing where it allows none, as sqlite3's
    connections.
    """
    try:
        return weakref.ref(referent)
    except TypeError:
        return lambda: None


def _stack(frames: list[FrameType]) -> traceback.StackSummary:
    """Return the stack of *frames*, innermost first, as the project knows it: from the test or the
    thread to the query.
    """

    def is_of(frame: FrameType, packages: set[str]) -> bool:
        return str(frame.f_globals.get("__name__")).partition(".")[0] in packages

    since_the_test = list(
        itertools.takewhile(lambda frame: not is_of(frame, {"_pytest", "pluggy"}), frames)
    )
    own = [frame for frame in since_the_test if not is_of(frame, _MACHINERY)] or since_the_test
    stack = traceback.StackSummary.extract(
        ((frame, frame.f_lineno) for frame in own), lookup_lines=False
    )
    stack.reverse()
    return stack


_MACHINERY = {
    "asgiref",
    "asyncio",
    "concurrent",
    "conn_guard",
    "contextlib",
    "django",
    "pytest_django",
    "threading",
}
