"""Jobs that leave their connections open, each in its own way."""

from __future__ import annotations

import asyncio
import threading

from asgiref.sync import sync_to_async
from django.db import connection, transaction

KEPT: list[object] = []


def query() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def fail() -> None:
    query()
    raise ValueError("on purpose")


def copies() -> None:
    """Keep a copy of the connection, which no signal of Django's reaches."""
    copy = connection.copy()
    with copy.cursor() as cursor:
        cursor.execute("SELECT 1")
    KEPT.append(copy)


def begin() -> None:
    """Leave a transaction open that Django knows nothing of."""
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")


def enter_atomic() -> None:
    """Enter an atomic block for good, as a time limit does that strikes between two lines of
    Django's.
    """
    transaction.atomic().__enter__()
    query()


def run_asyncio() -> None:
    """Query in the thread to which asgiref takes synchronous code."""

    async def main():
        await sync_to_async(query)()

    asyncio.run(main())


async def coroutine() -> None:
    await sync_to_async(query)()


def start_thread() -> None:
    """Query in a thread that ends with the job."""
    thread = threading.Thread(target=query)
    thread.start()
    thread.join()


def call_a_view() -> None:
    """Serve a request in the middle of the job, as a job that fills a cache does."""
    from django.test import Client

    assert Client().get("/absent/").status_code == 404
    connection.close()
    query()


JOBS = (query, fail, copies, begin, enter_atomic, run_asyncio, start_thread, call_a_view)
