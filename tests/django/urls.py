"""Views that leave connections open, each in a different way."""

from __future__ import annotations

import asyncio
import contextvars
import io
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from asgiref.sync import sync_to_async
from django.core.signals import request_finished
from django.db import connections, transaction
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import path

from conn_guard.connections.scopes import current_view

ALIASES: list[str] = []
AFTER_THE_RESPONSE: list[Callable[[], Coroutine[Any, Any, None]]] = []
LATER: list[Any] = []
AT_WORK: list[threading.Event] = []


def query() -> None:
    for alias in ALIASES:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")


def plain(request):
    query()
    return HttpResponse(b"plain")


def large(request):
    query()
    return HttpResponse(b"x" * 100_000)


async def alarge(request):
    await sync_to_async(query)()
    return HttpResponse(b"x" * 100_000)


def nothing(request):
    return HttpResponse(b"nothing")


def fails(request):
    query()
    raise ValueError("on purpose")


def raw_begin(request):
    for alias in ALIASES:
        with connections[alias].cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT 1")
    return HttpResponse(b"raw_begin")


def autocommit_off(request):
    for alias in ALIASES:
        transaction.set_autocommit(False, using=alias)
    query()
    return HttpResponse(b"autocommit_off")


def atomic_entered(request):
    for alias in ALIASES:
        transaction.atomic(using=alias).__enter__()
    query()
    return HttpResponse(b"atomic_entered")


def copies(request):
    for alias in ALIASES:
        with connections[alias].copy().cursor() as cursor:
            cursor.execute("SELECT 1")
    return HttpResponse(b"copies")


class QueriesAsItCloses(HttpResponse):
    def close(self):
        super().close()
        query()


def closing(request):
    return QueriesAsItCloses(b"closing")


def closing_instance(request):
    response = HttpResponse(b"closing")

    def close():
        HttpResponse.close(response)
        query()

    response.close = close
    return response


def late_receiver(request):
    def receive(**kwargs):
        request_finished.disconnect(receive)
        query()

    request_finished.connect(receive, weak=False)
    return HttpResponse(b"late")


def stream(request):
    def parts():
        for number in range(3):
            query()
            yield b"%d" % number
            if request.GET.get("fail"):
                raise ValueError("on purpose")

    return StreamingHttpResponse(parts())


def astream(request):
    async def parts():
        for number in range(3):
            await sync_to_async(query)()
            yield b"%d" % number
            if request.GET.get("fail"):
                raise ValueError("on purpose")

    return StreamingHttpResponse(parts())


def file(request):
    query()
    return FileResponse(io.BytesIO(b"x" * 100_000))


async def aplain(request):
    await sync_to_async(query)()
    return HttpResponse(b"aplain")


def page_not_found(request, exception):
    query()
    return HttpResponse(b"absent", status=404)


def server_error(request):
    query()
    return HttpResponse(b"failed", status=500)


async def afails(request):
    raise ValueError("on purpose")


async def to_thread(request):
    await asyncio.to_thread(query)
    return HttpResponse(b"to_thread")


async def run_in_executor(request):
    await asyncio.get_running_loop().run_in_executor(None, query)
    return HttpResponse(b"run_in_executor")


async def not_sensitive(request):
    await sync_to_async(query, thread_sensitive=False)()
    return HttpResponse(b"not_sensitive")


async def leaves_work(request):
    """Answer while work of this view still runs on the thread of the synchronous code."""
    await sync_to_async(query)()
    LATER.append(asyncio.create_task(sync_to_async(AT_WORK[0].wait)(10)))
    await asyncio.sleep(0.05)
    body = b"x" * int(request.GET["size"])
    if request.GET["kind"] == "file":
        return FileResponse(io.BytesIO(body))
    return (
        HttpResponse(body) if request.GET["kind"] == "ready" else StreamingHttpResponse(one(body))
    )


async def one(part):
    yield part


class RowsAsFile:
    """A file that reads its parts from the database, as a large object does."""

    def __init__(self) -> None:
        self.cursor = connections[ALIASES[0]].cursor()
        self.parts = 3

    def read(self, size: int) -> bytes:
        self.parts -= 1
        self.cursor.execute("SELECT 'part'")
        return self.cursor.fetchone()[0].encode() if self.parts >= 0 else b""

    def close(self) -> None:
        self.cursor.close()


def file_of_rows(request):
    return FileResponse(RowsAsFile())


def another_request(request):
    """Serve a second request within this one, and answer with the name of the current view."""
    query()
    Client().get("/plain/")
    return HttpResponse(current_view())


async def unsafe(request):
    query()
    return HttpResponse(b"unsafe")


async def starts_a_task(request):
    """Start a task that queries after the response.

    The kept context keeps asgiref's thread alive, as a reference cycle would.
    """
    LATER.append(asyncio.create_task(AFTER_THE_RESPONSE[0]()))
    LATER.append(contextvars.copy_context())
    return HttpResponse(b"starts_a_task")


async def asks_two_tasks(request):
    """Query in two tasks, one after the other, and answer whether both had the same session."""
    pids = []
    for _ in range(2):
        pids.append(await asyncio.create_task(sync_to_async(backend_pid)()))
        await asyncio.sleep(0.05)
    return HttpResponse(b"the same" if len(set(pids)) == 1 else b"another")


def backend_pid() -> int:
    with connections[ALIASES[0]].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


async def waits(request):
    await sync_to_async(query)()
    await asyncio.sleep(30)
    return HttpResponse(b"waits")


handler404 = page_not_found
handler500 = server_error

urlpatterns = [
    path(f"{view.__name__}/", view, name=f"the-{view.__name__}")
    for view in (
        plain,
        afails,
        to_thread,
        run_in_executor,
        not_sensitive,
        leaves_work,
        file_of_rows,
        another_request,
        large,
        alarge,
        nothing,
        fails,
        raw_begin,
        autocommit_off,
        atomic_entered,
        copies,
        closing,
        closing_instance,
        late_receiver,
        stream,
        astream,
        file,
        aplain,
        unsafe,
        waits,
        starts_a_task,
        asks_two_tasks,
    )
]
