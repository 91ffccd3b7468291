"""Kinds of load on an application whose sessions the server ends while they rest."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.http import HttpResponse
from django.test import RequestFactory, override_settings
from django.urls import path

THREADS = 50
REST_S = 0.5


class Ended:
    """An alias whose sessions are ended while every thread rests, so that none is in use."""

    def __init__(self, alias: str, end_sessions: Callable[[], None]) -> None:
        self.alias = alias
        self.meeting = threading.Barrier(THREADS, action=end_sessions)

    def query(self) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchall() == [(1,)]

    def rest(self) -> None:
        """Wait until the sessions were ended."""
        begun = time.monotonic()
        self.meeting.wait(60)
        threading.Event().wait(max(0.0, begun + REST_S - time.monotonic()))


@contextmanager
def site(query: Callable[[], None], rest: Callable[[], None]) -> Iterator[None]:
    """Serve `/one` with one query, and `/two` with two queries and a rest between them."""

    def one(request: Any) -> HttpResponse:
        query()
        return HttpResponse()

    def two(request: Any) -> HttpResponse:
        try:
            query()
        finally:
            # A thread whose use failed has to come as well, because all of them rest together.
            rest()
        query()
        return HttpResponse()

    urls = type("urls", (), {"urlpatterns": [path("one", one), path("two", two)]})
    with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=[], ALLOWED_HOSTS=["*"]):
        yield


def in_threads(use: Callable[[], bool], times: int, rest: Callable[[], None]) -> int:
    """Return how many of *times* uses fail in threads that live on and rest after each use."""

    def work() -> int:
        failed = 0
        for _ in range(times // THREADS):
            failed += not use()
            rest()
        return failed

    with ThreadPoolExecutor(THREADS) as threads:
        return sum(each.result() for each in [threads.submit(work) for _ in range(THREADS)])


def wsgi(ended: Ended, url: str, requests: int) -> int:
    """Return how many requests fail on a server whose threads live on."""
    handler = WSGIHandler()

    def request() -> bool:
        response = handler(RequestFactory().get(url).environ, lambda *args: None)
        response.close()
        return response.status_code == 200

    with site(ended.query, ended.rest):
        return in_threads(request, requests, ended.rest)


def asgi(ended: Ended, url: str, requests: int) -> int:
    """Return how many requests fail on a server with a thread for each."""

    async def request() -> int:
        sent: list[dict[str, Any]] = []
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not messages:
                await asyncio.sleep(30)
            return messages.pop()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": url,
            "query_string": b"",
            "headers": [],
            "http_version": "1.1",
        }
        await handler(scope, receive, send)
        return sent[0]["status"]

    async def serve() -> list[int]:
        statuses: list[int] = []
        for _ in range(requests // THREADS):
            statuses += await asyncio.gather(*(request() for _ in range(THREADS)))
        return statuses

    with site(ended.query, ended.rest):
        handler = ASGIHandler()
        return sum(status != 200 for status in asyncio.run(serve()))


def threads_alone(ended: Ended, uses: int) -> int:
    """Return how many uses fail in threads that live on and receive no signal of a request."""

    def use() -> bool:
        try:
            ended.query()
        except Exception:  # noqa: BLE001
            return False
        return True

    return in_threads(use, uses, ended.rest)


SHAPES: dict[str, Callable[[Ended, int], int]] = {
    "one query a request": lambda ended, times: wsgi(ended, "/one", times),
    "two queries half a second apart": lambda ended, times: wsgi(ended, "/two", times),
    "threads without request signals": threads_alone,
    "ASGI, two queries half a second apart": lambda ended, times: asgi(ended, "/two", times),
}


def restart_under_load(
    alias: str, restart: Callable[[], None], *, threads: int, wanted: int
) -> tuple[int, list[str]]:
    """Restart the server while *threads* send requests; return the count of answers, and errors.

    Errors of requests that ran while the server was down are left out.
    """
    down: list[float] = []
    handler = WSGIHandler()
    done = 0
    inexcusable: list[str] = []
    stop = threading.Event()
    counting = threading.Lock()

    def work() -> None:
        nonlocal done
        while not stop.wait(0.01):
            begun = time.monotonic()
            response = handler(RequestFactory().get("/one").environ, lambda *args: None)
            response.close()
            ended = time.monotonic()
            with counting:
                if response.status_code == 200:
                    done += bool(len(down) == 2 and begun > down[1])
                elif not down or ended < down[0] or (len(down) == 2 and begun > down[1]):
                    inexcusable.append(f"{response.status_code} at {begun:.3f}, down from {down}")
                if done >= wanted:
                    stop.set()

    def query() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")

    with site(query, lambda: None), ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(work) for _ in range(threads)]
        try:
            threading.Event().wait(0.3)
            down.append(time.monotonic())
            restart()
            down.append(time.monotonic())
            deadline = time.monotonic() + 30
            while not stop.is_set() and time.monotonic() < deadline:
                threading.Event().wait(0.05)
        finally:
            stop.set()
        for each in running:
            each.result()
    return done, inexcusable
