"""Closes a connection of the application, and tells whether it may be closed.

A finalizer runs some of this. So it takes no lock that its thread may hold, and never asks for
``threading.current_thread()``, directly or by logging: that would register a thread for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from django.db import connections

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("conn_guard.middleware")


def is_lent(wrapper: Any) -> bool:
    """Return whether *wrapper* is its lender's to close: shared between threads on purpose, as
    LiveServerTestCase does, or inherited over a fork, where closing it would end the session of the
    parent.

    ``allow_thread_sharing`` tells the former too, but takes a lock that the thread of a finalizer
    may hold."""
    return bool(wrapper._thread_sharing_count) or getattr(wrapper, "conn_guard_pid", None) not in (
        None,
        os.getpid(),
    )


def abandon(wrapper: Any) -> None:
    """Close *wrapper*, whose owner is gone, and stay silent: a finalizer can neither raise nor
    log.
    """
    if wrapper.connection is None or is_lent(wrapper):
        return
    with contextlib.suppress(Exception):
        if wrapper._thread_ident == threading.get_ident():
            wrapper.close()
        else:
            wrapper.inc_thread_sharing()
            try:
                wrapper.close()
            finally:
                wrapper.dec_thread_sharing()


def in_transaction(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper* is in an atomic block, has another autocommit than its settings ask
    for, or is in a transaction that only the driver knows of, such as a raw BEGIN. PostgreSQL and
    SQLite tell the latter, others don't.

    **Source:** libpq's PQTRANS_INTRANS and PQTRANS_INERROR are 2 and 3.
    """
    if wrapper.in_atomic_block or wrapper.autocommit != wrapper.settings_dict["AUTOCOMMIT"]:
        return True
    raw: Any = wrapper.connection
    status = getattr(getattr(raw, "info", None), "transaction_status", None)
    return status in (2, 3) if status is not None else getattr(raw, "in_transaction", False) is True


_WROTE = "SELECT pg_catalog.txid_current_if_assigned() IS NOT NULL"


def rolled_back_reading(wrapper: BaseDatabaseWrapper) -> bool:
    """Roll *wrapper* back where its settings have autocommit off and its transaction wrote nothing;
    return whether they have and it did.

    With such settings every query opens a transaction, and a view that only reads commits none.
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


def close(wrapper: BaseDatabaseWrapper) -> None:
    try:
        wrapper.close()
        # Closing inside an atomic block that nobody will leave makes Django refuse every later
        # query of this thread.
        if wrapper.in_atomic_block and is_current(wrapper):
            del connections[wrapper.alias]
    except Exception:
        logger.exception("The connection %r could not be closed.", wrapper.alias)


def close_if_unusable_or_obsolete(wrapper: BaseDatabaseWrapper) -> None:
    try:
        wrapper.close_if_unusable_or_obsolete()
    except Exception:
        logger.exception("The connection %r could not be closed.", wrapper.alias)


def is_current(wrapper: BaseDatabaseWrapper) -> bool:
    return any(current is wrapper for current in connections.all(initialized_only=True))


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def run_unattended(closing: Coroutine[Any, Any, None]) -> None:
    """Let *closing* run on this loop without anybody waiting for it."""
    task = asyncio.ensure_future(_suppressed(closing))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


# The loop itself holds its tasks weakly.
_closing: set[asyncio.Future[None]] = set()


async def _suppressed(closing: Coroutine[Any, Any, None]) -> None:
    # asgiref raises where the thread has ended, which closed what it owned.
    with contextlib.suppress(RuntimeError):
        await closing
