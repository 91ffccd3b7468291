"""The reclaimer: one daemon thread for each process, which sleeps until a connection is due.

Finalizers call :func:`unregister` and :func:`submit`, and a finalizer may run inside any allocation
of any thread. So these two take no lock: single operations of a dict and of a SimpleQueue suffice.
"""

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

# Seconds that a fork or the end of the process waits for a reclaimer that is asking the server.
_STOP_TIMEOUT_S = 1.0


class Reclaimable(Protocol):
    """An object that the reclaimer checks at given times."""

    def check_due(self, now: float) -> float:
        """Do the work that is due at *now*, and return when to check next.

        Both are seconds on the monotonic clock; infinity means never.
        """

    def leave_to_parent(self) -> None:
        """In a forked child: leave the session to the parent."""


class _State:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.registered: dict[int, ref[Reclaimable]] = {}
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.starting = threading.Lock()
        self.thread: threading.Thread | None = None
        self.wakes_at = math.inf
        self.is_needed = False
        self.is_stopping = False


_state = _State()


def register(key: int, target: Reclaimable, *, due_at: float, submits_jobs: bool) -> None:
    """Check *target* from *due_at* on, until :func:`unregister` is called with *key*.

    *due_at* is on the monotonic clock. With *submits_jobs* the thread starts even if nothing can
    become due.
    """
    if _state.pid != os.getpid():
        # uWSGI forks in C, and Python's fork hooks don't run.
        _begin_in_child()
    state = _state
    state.registered[key] = ref(target)
    if submits_jobs or due_at < math.inf:
        state.is_needed = True
        _start()
    if due_at < state.wakes_at:
        state.jobs.put(_wake)


def unregister(key: int) -> None:
    """Stop checking the object that was registered with *key*."""
    _state.registered.pop(key, None)


def submit(job: Callable[[], None]) -> None:
    """Run *job* in the reclaimer's thread; a finalizer must not run it itself."""
    _state.jobs.put(job)


def _wake() -> None:
    """Do nothing; as a job it wakes the reclaimer, which then computes its next deadline."""


def _start() -> None:
    state = _state
    if state.is_stopping or (state.thread is not None and state.thread.is_alive()):
        return
    with state.starting:
        if state.thread is None or not state.thread.is_alive():
            thread = threading.Thread(
                target=_run, args=(state,), name="conn_guard.reclaimer", daemon=True
            )
            # RuntimeError: the interpreter is about to end and starts no new threads.
            with contextlib.suppress(RuntimeError):
                thread.start()
                state.thread = thread


def _run(state: _State) -> None:
    while not state.is_stopping:
        wakes_at = _check_all(state)
        try:
            job = state.jobs.get(timeout=_seconds_until(wakes_at))
        except queue.Empty:
            continue
        _run_job(job)


def _seconds_until(wakes_at: float) -> float | None:
    if wakes_at == math.inf:
        return None
    return min(max(0.0, wakes_at - time.monotonic()), threading.TIMEOUT_MAX)


def _check_all(state: _State) -> float:
    # With infinity here, an object that is registered during the loop sends a wake-up. The loop
    # may already have passed its place.
    state.wakes_at = math.inf
    wakes_at = math.inf
    for reference in list(state.registered.values()):
        target = reference()
        if target is not None:
            try:
                wakes_at = min(wakes_at, target.check_due(time.monotonic()))
            except Exception:
                logger.exception("The reclaimer could not check a connection.")
    state.wakes_at = wakes_at
    return wakes_at


def _run_job(job: Callable[[], None]) -> None:
    try:
        job()
    except Exception:
        logger.exception("The reclaimer could not give a connection back.")


def _stop() -> None:
    """Stop the thread at exit and before a fork, which copies locks but not their threads."""
    _state.is_stopping = True
    if _state.thread is not None and _state.pid == os.getpid():
        _state.jobs.put(_wake)
        _state.thread.join(_STOP_TIMEOUT_S)


def _resume() -> None:
    state = _state
    state.is_stopping = False
    # Python 3.13 counts a thread that is started here, and warns of the fork. So one is started
    # only for a connection that is open, or for a job that came meanwhile.
    if state.is_needed and (state.registered or not state.jobs.empty()):
        _start()


def _begin_in_child() -> None:
    global _state
    targets = [reference() for reference in list(_state.registered.values())]
    _state = _State()
    for target in targets:
        if target is not None:
            target.leave_to_parent()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_stop, after_in_parent=_resume, after_in_child=_begin_in_child)
