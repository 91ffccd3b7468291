"""Closes a connection of the application, and tells whether it may be closed.

A finalizer runs some of this. So it takes no lock that its thread may hold, and never asks for
``threading.current_thread()``, directly or by logging: that would register a dummy thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from weakref import ref

from django.db import connections

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("conn_guard.middleware")


def is_lent(wrapper: Any) -> bool:
    """Return whether another thread or process has to close *wrapper*.

    LiveServerTestCase shares a wrapper between threads on purpose. A forked child inherits
    wrappers, and closing one would end the session of the parent. ``allow_thread_sharing`` tells
    the former too, but takes a lock that the thread of a finalizer may hold.
    """
    return bool(wrapper._thread_sharing_count) or getattr(wrapper, "conn_guard_pid", None) not in (
        None,
        os.getpid(),
    )


def is_open(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper* has a connection that can still be closed.

    One that was closed inside an atomic block keeps its driver connection until code leaves the
    block, which may never happen.
    """
    return wrapper.connection is not None and not wrapper.closed_in_transaction


def abandon(wrapper: Any, reason: str = "owner") -> bool:
    """Close *wrapper*, whose owner has ended, and return whether it was open.

    It neither raises nor logs, since a finalizer can do neither. *reason* is one of
    :data:`events.REASONS`.
    """
    if wrapper.connection is None or is_lent(wrapper):
        return False
    wrapper.conn_guard_reason = reason
    with contextlib.suppress(Exception):
        if wrapper._thread_ident == threading.get_ident():
            wrapper.close()
        else:
            wrapper.inc_thread_sharing()
            try:
                wrapper.close()
            finally:
                wrapper.dec_thread_sharing()
    return True


def in_transaction(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper* is in a transaction.

    That is an atomic block, an autocommit other than its settings ask for, or a transaction that
    only the driver knows of, such as a raw BEGIN. The drivers of PostgreSQL and SQLite tell the
    latter, others don't.

    **Source:** libpq's PQTRANS_INTRANS and PQTRANS_INERROR are 2 and 3.
    """
    if wrapper.in_atomic_block or wrapper.autocommit != wrapper.settings_dict["AUTOCOMMIT"]:
        return True
    raw: Any = wrapper.connection
    # psycopg 3 makes an object for each ``info``, and every request asks.
    pgconn = getattr(raw, "pgconn", None)
    if pgconn is not None:
        return pgconn.transaction_status in (2, 3)
    status = getattr(getattr(raw, "info", None), "transaction_status", None)
    return status in (2, 3) if status is not None else getattr(raw, "in_transaction", False) is True


_WROTE = "SELECT pg_catalog.txid_current_if_assigned() IS NOT NULL"


def rolled_back_reading(wrapper: BaseDatabaseWrapper) -> bool:
    """Roll back a transaction that only read, and return whether it was one.

    Only where the settings have ``AUTOCOMMIT`` off: there every query opens a transaction, and a
    view that only reads commits none.
    """
    if (
        wrapper.settings_dict["AUTOCOMMIT"]
        or wrapper.autocommit
        or wrapper.in_atomic_block
        or wrapper.vendor != "postgresql"
    ):
        return False
    try:
        # The driver's own cursor: no wrapper, log or count of the application's sees the question.
        with wrapper.connection.cursor() as cursor:
            cursor.execute(_WROTE)
            if cursor.fetchone()[0]:
                return False
        wrapper.rollback()
    except Exception:  # noqa: BLE001 - an aborted transaction, or a dead session: it is closed
        return False
    return True


def close(wrapper: Any, reason: str) -> None:
    """Close *wrapper* on its own thread; log an error instead of raising it.

    *reason* is one of :data:`events.REASONS`.
    """
    wrapper.conn_guard_reason = reason
    try:
        wrapper.close()
        # After a close inside an atomic block that no code will leave, Django refuses every later
        # query of this thread.
        if wrapper.in_atomic_block and is_current(wrapper):
            del connections[wrapper.alias]
    except Exception:
        logger.exception("The connection %r could not be closed.", wrapper.alias)


def close_if_unusable_or_obsolete(wrapper: Any) -> None:
    """Close *wrapper* as Django does at the end of a request; log an error, don't raise it."""
    wrapper.conn_guard_reason = "request"
    try:
        wrapper.close_if_unusable_or_obsolete()
    except Exception:
        logger.exception("The connection %r could not be closed.", wrapper.alias)
    # A connection that stays open may be closed for another reason.
    wrapper.conn_guard_reason = "django"


def is_current(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper* is this thread's or context's connection of its alias."""
    return any(current is wrapper for current in connections.all(initialized_only=True))


_here = threading.local()


def open_on_this_thread() -> list[BaseDatabaseWrapper]:
    """Return the connections that are open on this thread; on an event loop's, in this context.

    Every request asks, and asking Django for each alias is slow. So a thread asks Django once, and
    :func:`note_opened` adds what is opened later.
    """
    known: list[ref[BaseDatabaseWrapper]] | None = getattr(_here, "known", None)
    if known is None or running_loop() is not None:
        wrappers = connections.all(initialized_only=True)
        if running_loop() is None:
            _here.known = [ref(wrapper) for wrapper in wrappers]
        return [wrapper for wrapper in wrappers if wrapper.connection is not None]
    found = []
    for each in known:
        wrapper = each()
        if wrapper is not None and wrapper.connection is not None:
            found.append(wrapper)
    return found


def note_opened(wrapper: BaseDatabaseWrapper) -> None:
    """Note that *wrapper* was opened on this thread, for :func:`open_on_this_thread`."""
    known: list[ref[BaseDatabaseWrapper]] | None = getattr(_here, "known", None)
    if known is None or any(each() is wrapper for each in known) or not is_current(wrapper):
        return
    _here.known = [*(each for each in known if each() is not None), ref(wrapper)]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs on this thread, or None."""
    # get_running_loop() would raise where none runs, which is slow.
    return asyncio._get_running_loop()


def run_unattended(closing: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
    """Start *closing* with *arguments* on this loop. No code waits for it."""
    # A coroutine made here would never be awaited where the loop ends before the task begins.
    task = asyncio.ensure_future(_suppressed(closing, *arguments))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


# An event loop holds its tasks weakly.
_closing: set[asyncio.Future[None]] = set()


async def _suppressed(
    closing: Callable[..., Coroutine[Any, Any, None]], *arguments: object
) -> None:
    # asgiref raises where the thread has ended, which closed what it owned.
    with contextlib.suppress(RuntimeError):
        await closing(*arguments)
