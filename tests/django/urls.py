"""Views that leave connections behind, each in a way of its own."""

from __future__ import annotations

import asyncio
import contextvars
import io
from collections.abc import Callable, Coroutine
from typing import Any

from asgiref.sync import sync_to_async
from django.core.signals import request_finished
from django.db import connections, transaction
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import path

ALIASES: list[str] = []
AFTER_THE_RESPONSE: list[Callable[[], Coroutine[Any, Any, None]]] = []
LATER: list[Any] = []


def query() -> None:
    for alias in ALIASES:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")


def plain(request):
    query()
    return HttpResponse(b"plain")


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


async def unsafe(request):
    query()
    return HttpResponse(b"unsafe")


async def starts_a_task(request):
    """Leave work for after the response, and keep the request's context as a cycle would, and with
    it asgiref's thread.
    """
    LATER.append(asyncio.create_task(AFTER_THE_RESPONSE[0]()))
    LATER.append(contextvars.copy_context())
    return HttpResponse(b"starts_a_task")


async def asks_two_tasks(request):
    """Query in one task after the other, and tell whether both had the same session."""
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


urlpatterns = [
    path(f"{view.__name__}/", view, name=f"the-{view.__name__}")
    for view in (
        plain,
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
