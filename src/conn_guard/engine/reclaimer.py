"""The engine's one thread a process: this room holds the reclaimer, which comes when something is
due and sleeps otherwise.

Finalizers may call :func:`forget` and :func:`later`, inside any allocation of any thread, so these
take no lock: a dict's and a SimpleQueue's own operations are enough."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol
from weakref import ref

logger = logging.getLogger("conn_guard.engine")

# Seconds that a fork or the end of the process waits for a reclaimer that is in the middle of a
# question to the server.
_PATIENCE_S = 1.0


class Kept(Protocol):
    """What the reclaimer keeps."""

    def tend(self, now: float) -> float:
        """Do what is due at *now*, and return when to come next, on the monotonic clock; infinity
        for never.
        """

    def leave_to_parent(self) -> None:
        """In a forked child: forget the parent's session."""


class _State:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.kept: dict[int, ref[Kept]] = {}
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.starting = threading.Lock()
        self.thread: threading.Thread | None = None
        self.wakes_at = math.inf
        self.is_wanted = False
        self.is_stopping = False


_state = _State()


def keep(key: int, kept: Kept, *, due_at: float, has_jobs: bool) -> None:
    """Tend *kept* from *due_at* until it is forgotten; *has_jobs*: there may be jobs even if
    nothing will ever be due.
    """
    if _state.pid != os.getpid():
        # uWSGI forks without telling Python.
        _begin_in_child()
    state = _state
    state.kept[key] = ref(kept)
    if has_jobs or due_at < math.inf:
        state.is_wanted = True
        _start()
    if due_at < state.wakes_at:
        state.jobs.put(_look_around)


def forget(key: int) -> None:
    """Tend *key* no longer."""
    _state.kept.pop(key, None)


def later(job: Callable[[], None]) -> None:
    """Let the reclaimer do *job*, which a finalizer must not do itself."""
    _state.jobs.put(job)


def _look_around() -> None:
    """Wake the reclaimer, which then computes its next deadline."""


def _start() -> None:
    state = _state
    if state.is_stopping or (state.thread is not None and state.thread.is_alive()):
        return
    with state.starting:
        if state.thread is None or not state.thread.is_alive():
            thread = threading.Thread(
                target=_run, args=(state,), name="conn_guard.reclaimer", daemon=True
            )
            # RuntimeError: the interpreter is about to end and takes no new threads.
            with contextlib.suppress(RuntimeError):
                thread.start()
                state.thread = thread


def _run(state: _State) -> None:
    while not state.is_stopping:
        wakes_at = _tend_all(state)
        try:
            job = state.jobs.get(timeout=_seconds_until(wakes_at))
        except queue.Empty:
            continue
        _do(job)


def _seconds_until(wakes_at: float) -> float | None:
    if wakes_at == math.inf:
        return None
    return min(max(0.0, wakes_at - time.monotonic()), threading.TIMEOUT_MAX)


def _tend_all(state: _State) -> float:
    # Whoever comes while we look around wakes us, since we may have passed its place.
    state.wakes_at = math.inf
    wakes_at = math.inf
    for each in list(state.kept.values()):
        kept = each()
        if kept is not None:
            try:
                wakes_at = min(wakes_at, kept.tend(time.monotonic()))
            except Exception:
                logger.exception("A connection could not be tended.")
    state.wakes_at = wakes_at
    return wakes_at


def _do(job: Callable[[], None]) -> None:
    try:
        job()
    except Exception:
        logger.exception("A connection could not be given back.")


def _stop() -> None:
    """End the thread, if there is one: at exit, and before a fork, which copies no threads but the
    locks they hold.
    """
    _state.is_stopping = True
    if _state.thread is not None and _state.pid == os.getpid():
        _state.jobs.put(_look_around)
        _state.thread.join(_PATIENCE_S)


def _resume() -> None:
    _state.is_stopping = False
    if _state.is_wanted:
        _start()


def _begin_in_child() -> None:
    global _state
    kept = [each() for each in list(_state.kept.values())]
    _state = _State()
    for each in kept:
        if each is not None:
            each.leave_to_parent()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_stop, after_in_parent=_resume, after_in_child=_begin_in_child)
