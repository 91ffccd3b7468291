"""Counts what happens to connections, and logs the ones that threads left open.

A finalizer reports here. So a report takes no lock and logs nothing itself: logging in a thread
that ends would register a dummy thread that stays.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from conn_guard import stacks

logger = logging.getLogger("conn_guard.middleware")

# Counting

Kind: TypeAlias = Literal[
    "opened", "closed", "replaced", "held_too_long", "never_closed", "used", "created", "waited"
]
MEANINGS: Mapping[Kind, str] = {
    "opened": "Connections that were opened.",
    "closed": "Connections that ended, by the reason.",
    "held_too_long": "Connections that were held for longer than REPORT_HELD_FOR.",
    "replaced": "Connections that the engine replaced because the server ended their session.",
    "never_closed": "Responses that the web server never closed.",
}
"""The kinds that are exported as counters."""
REASONS = ("request", "owner", "idle", "replaced", "job", "django", "dropped")
"""Why a connection was closed. ``django``: by Django or its pool; ``dropped``: without a close."""


class Event(NamedTuple):
    """One event of a connection of *alias*, or a response that was never closed.

    *reason* belongs to ``closed``. *seconds* belongs to ``used`` (a wrapper had the connection),
    ``created`` (connecting took) and ``waited`` (a pool took to hand it out).
    """

    kind: Kind
    alias: str = ""
    reason: str = ""
    seconds: float = 0.0


Key: TypeAlias = tuple[Kind, str, str]
"""The kind, alias and reason that events are counted by."""

# Seconds until an event is counted. The events of a burst share one thread.
_GATHER_EVENTS_S = 0.05
# Seconds that a fork waits for that thread.
_STOP_TIMEOUT_S = 1.0

counting = False
"""Whether events are counted in this process; :func:`count` switches it on."""
_listeners: list[Callable[[Event], None]] = []


class _Counts:
    """The counts of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.pending: deque[Event] = deque()
        self.totals: Counter[Key] = Counter()
        self.writing = threading.Lock()
        self.has_writer = False
        self.hurry = threading.Event()


_counts = _Counts()


def count(listener: Callable[[Event], None] | None = None) -> None:
    """Count events from now on, and call *listener* with each, on a thread of this module.

    Without a call nothing is counted.
    """
    global counting
    counting = True
    if listener is not None and listener not in _listeners:
        _listeners.append(listener)


def totals() -> Mapping[Key, int]:
    """Return the number of events of this process by kind, alias and reason.

    A forked child starts from zero. An event is counted a moment after it happened.
    """
    return dict(_current().totals)


def report(kind: Kind, alias: str = "", reason: str = "", seconds: float = 0.0) -> None:
    """Report an event if events are counted."""
    if not counting:
        return
    counts = _current()
    counts.pending.append(Event(kind, alias, reason, seconds))
    if not counts.has_writer:
        counts.has_writer = True
        # Not threading.Thread, whose start() takes a lock that the thread of a finalizer may hold.
        try:
            _thread.start_new_thread(_write, (counts,))
        except RuntimeError:  # the interpreter is about to end and takes no new threads
            counts.has_writer = False


def _current() -> _Counts:
    global _counts
    if _counts.pid != os.getpid():
        _counts = _Counts()
    return _counts


def _write(counts: _Counts) -> None:
    while counts.pending:
        counts.hurry.wait(_GATHER_EVENTS_S)
        _write_pending(counts)
    counts.has_writer = False
    # An event may have come in between, and have found a writer.
    if counts.pending:
        _write_pending(counts)


def _write_pending(counts: _Counts) -> None:
    with counts.writing:
        while counts.pending:
            event = counts.pending.popleft()
            counts.totals[event[:3]] += 1
            for listener in _listeners:
                try:
                    listener(event)
                except Exception:
                    logger.exception("An event of the connection %r was not told.", event.alias)


def _finish_writing() -> None:
    """Let the writer end before a fork: the child would inherit a listener's lock, taken."""
    counts = _counts
    counts.hurry.set()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while counts.has_writer and counts.pid == os.getpid() and time.monotonic() < deadline:
        time.sleep(0.001)
    counts.hurry.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_finish_writing, after_in_child=_current)

# Connections that threads left open

LEAST_PAUSE_S = 60.0
"""Seconds between two lines of the log."""
_GATHER_S = 1.0

_left_open: deque[str] = deque()
_last_line_at = -LEAST_PAUSE_S
# The process that has a thread waiting to log: a forked child has none.
_waiting_in = 0


def thread_left_open(count: int, origin: str) -> None:
    """Count *count* connections that were closed because the thread that opened them has ended.

    *origin* says which code the thread belonged to, as :func:`origin_of_thread` does.
    """
    global _waiting_in
    _left_open.extend([origin] * count)
    if _waiting_in == os.getpid():
        return
    # RuntimeError: the interpreter is about to end and takes no new threads.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=_log_later, name="conn_guard", daemon=True).start()
        _waiting_in = os.getpid()


def origin_of_thread(view: str) -> str:
    """Return which code the current thread belongs to: the *view* that started it, or what it runs.

    An executor's thread runs many functions; there it is the one that opens the connection.

    Python passes a context, and with it the view, to the calls of ``asyncio.to_thread`` and of
    asgiref; to a ``threading.Thread`` only from 3.14 on, by ``sys.flags.thread_inherit_context``.
    """
    if view:
        return f"threads that {view} started"
    frames = stacks.callers()
    target = next(
        (
            frame
            for frame in frames
            if frame.f_back is not None and frame.f_back.f_code is threading.Thread.run.__code__
        ),
        frames[-1],
    )
    own = [frame for frame in frames if stacks.is_own(frame)]
    frame = target if stacks.is_own(target) or not own else own[0]
    name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
    return f"threads that run {frame.f_globals.get('__name__')}.{name}"


def _log_later() -> None:
    global _last_line_at, _waiting_in
    # Connections of one burst come one after the other: they belong into one line.
    time.sleep(max(_GATHER_S, _last_line_at + LEAST_PAUSE_S - time.monotonic()))
    _last_line_at = time.monotonic()
    _waiting_in = 0
    counts: Counter[str] = Counter()
    with contextlib.suppress(IndexError):
        while True:
            counts[_left_open.popleft()] += 1
    if counts:
        logger.info("Ended connections that were left open: %s.", _listed(counts))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} of {origin}" for origin, count in counts.most_common())
