"""This room holds what the benchmarks share: leaky_site on a real server, with and without
conn_guard.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

from tests.leaks.harness import Cell, environment_of, serving, sessions
from tests.leaks.servers import Server
from tools.local_postgres import LocalPostgres

COLUMNS = ("django", "middleware")


def stay_on_one_processor() -> None:
    """Keep this process, and what it starts from now on, on one processor, where the system allows
    it.

    On several the kernel keeps one session beside its client and wakes another from afar: 30 µs for
    one and 90 for the other."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


@contextmanager
def database() -> Iterator[str]:
    """Yield the address of the server in DATABASE_URL, or of one of our own."""
    if url := os.environ.get("DATABASE_URL"):
        yield url.partition("?")[0]
    else:
        with LocalPostgres(max_connections=200) as server:
            yield server.url()


@contextmanager
def served(
    server: Server, column: str, url: str, *, setting: str = "0", aliases: int = 1
) -> Iterator[tuple[int, Callable[[], int]]]:
    """Yield the port of *server*, which serves leaky_site, and a function that counts its
    sessions.
    """
    name = f"benchmark-{secrets.token_hex(6)}"
    environ = environment_of(Cell(server.name, "nothing", setting, column), url, name)
    environ["LEAKS_ALIASES"] = ",".join(["default", "second", "third"][:aliases])
    with sessions(url) as count, serving(server, sys.executable, environ) as running:
        yield running.address.port, lambda: count(name).total


def get(client: HTTPConnection, path: str) -> bytes:
    """Return the body of *path*; RuntimeError for any answer but 200."""
    client.request("GET", path)
    answer = client.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered with {answer.status}.")
    return body
