"""Counts the connections that threads left open, and logs the counts at most once a minute.

A finalizer reports here. So a report takes no lock and logs nothing itself: logging in a thread
that ends would register that thread for ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter, deque

from conn_guard import stacks

logger = logging.getLogger("conn_guard.middleware")

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
