"""A process with one Django handler; ``bench_middleware`` writes it one line for each run."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

import django
from django.test import AsyncRequestFactory, RequestFactory

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def _wsgi(path: str, requests: int) -> float:
    from tests.leaks.leaky_site.wsgi import django_application

    environ = RequestFactory().get(path).environ
    began = CLOCKS[sys.argv[2]]()
    for _ in range(requests):
        response = django_application(dict(environ), lambda status, headers: None)
        b"".join(response)
        response.close()
    return CLOCKS[sys.argv[2]]() - began


def _asgi(path: str, requests: int) -> float:
    from tests.leaks.leaky_site.asgi import django_application

    scope = AsyncRequestFactory().get(path).scope

    async def request() -> None:
        asked = iter([{"type": "http.request"}])

        async def receive() -> dict[str, str]:
            for message in asked:
                return message
            await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: object) -> None:
            pass

        await django_application(dict(scope), receive, send)

    async def run() -> float:
        began = CLOCKS[sys.argv[2]]()
        for _ in range(requests):
            await request()
        return CLOCKS[sys.argv[2]]() - began

    return asyncio.run(run())


def main() -> None:
    django.setup()
    run: Callable[[str, int], float] = {"WSGI": _wsgi, "ASGI": _asgi}[sys.argv[1]]
    for line in sys.stdin:
        path, requests = line.split()
        print(run(path, int(requests)), flush=True)


if __name__ == "__main__":
    main()
