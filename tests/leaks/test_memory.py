"""Nothing grows with the number of requests: bounds on the objects that a process keeps.

`LEAKS_MEMORY_REQUESTS=100000` makes the run as long as wanted; the bounds stay the same.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncRequestFactory, RequestFactory
from django.urls import path

REQUESTS = int(os.environ.get("LEAKS_MEMORY_REQUESTS", "6000"))
MORE_AT_MOST = 5
"""Objects of conn_guard by which any number of requests may grow a process: its middleware, and an
owner for a thread.
"""


def nothing(request):
    return HttpResponse("ok")


def query(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("ok")


def stream(request):
    return StreamingHttpResponse(iter([b"a", b"b"]))


def fail(request):
    raise ValueError("The view failed.")


URLS = tuple(path(f"{view.__name__}/", view) for view in (nothing, query, stream, fail))


@pytest.fixture(autouse=True)
def quiet_site(settings, caplog):
    settings.ROOT_URLCONF = URLS
    settings.MIDDLEWARE = ["conn_guard.middleware.ConnectionGuardMiddleware"]
    # pytest keeps every record, and with it the traceback and the request.
    caplog.set_level(logging.CRITICAL, "django.request")


def wsgi(name: str) -> Callable[[int], None]:
    handler = WSGIHandler()
    environ = RequestFactory().get(f"/{name}/").environ

    def run(times: int) -> None:
        for _ in range(times):
            response = handler(dict(environ), lambda status, headers: None)
            for _ in response:
                pass
            response.close()

    return run


def asgi(name: str, *, send_raises: bool = False) -> Callable[[int], None]:
    handler = ASGIHandler()
    scope = AsyncRequestFactory().get(f"/{name}/").scope

    async def request() -> None:
        asked = iter([{"type": "http.request"}])

        async def receive() -> dict[str, str]:
            for message in asked:
                return message
            await asyncio.Event().wait()
            raise AssertionError("nobody sets the event")

        async def send(message: object) -> None:
            if send_raises:
                raise OSError("The client left.")

        with suppress(OSError):
            await handler({**scope, "type": "http"}, receive, send)

    async def run(times: int) -> None:
        for _ in range(times):
            await request()

    return lambda times: asyncio.run(run(times))


def ours() -> Counter[str]:
    return Counter(
        # A class may have a property of that name, so it is not always text.
        type(each).__qualname__
        for each in gc.get_objects()
        if str(type(each).__module__).startswith("conn_guard.")
    )


@contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.filterwarnings(
    "ignore:StreamingHttpResponse must consume synchronous iterators:Warning"
)
@pytest.mark.parametrize(
    ("run", "times"),
    [
        pytest.param(lambda: wsgi("nothing"), REQUESTS, id="wsgi"),
        pytest.param(lambda: wsgi("stream"), REQUESTS // 5, id="wsgi-stream"),
        pytest.param(lambda: wsgi("fail"), REQUESTS // 20, id="wsgi-fail"),
        pytest.param(lambda: asgi("nothing"), REQUESTS // 5, id="asgi"),
        pytest.param(lambda: asgi("stream"), REQUESTS // 20, id="asgi-stream"),
        pytest.param(
            lambda: asgi("nothing", send_raises=True), REQUESTS // 20, id="asgi-send-raises"
        ),
    ],
)
def test_requests_leave_no_growing_registry(run, times, settings):
    ours_before = ours()
    guarded = grown_by(run(), times)
    # What other tests of this process left is theirs, and what Django keeps by itself is seen
    # beside it.
    assert (ours() - ours_before).total() <= MORE_AT_MOST, ours() - ours_before
    settings.MIDDLEWARE = []
    assert guarded < grown_by(run(), times) + 500


def grown_by(requests: Callable[[int], None], times: int) -> int:
    """Return how many objects more there are after *times* requests."""
    requests(50)
    gc.collect()
    before = len(gc.get_objects())
    requests(times)
    gc.collect()
    return len(gc.get_objects()) - before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("make", [wsgi, asgi])
def test_connections_leave_no_growing_registry(make):
    requests = make("query")
    requests(10)
    gc.collect()
    before = ours()
    requests(200)
    gc.collect()
    assert (ours() - before).total() <= 2, ours() - before


def test_an_ordinary_request_leaves_the_collector_nothing_of_ours():
    requests = wsgi("nothing")
    requests(50)
    with without_collector():
        before = ours()
        requests(200)
        assert (ours() - before).total() <= 2, ours() - before
