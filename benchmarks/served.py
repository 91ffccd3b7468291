"""leaky_site on a real server, with and without conn_guard, for all benchmarks."""

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
    """Keep this process and its later children on one processor, if the system supports it.

    On several, the kernel may run a session on its client's processor or on another: a statement
    takes 30 µs in one case and 90 µs in the other.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


@contextmanager
def database() -> Iterator[str]:
    """Yield the URL of the server in DATABASE_URL, or of a server that is started here."""
    if url := os.environ.get("DATABASE_URL"):
        yield url.partition("?")[0]
    else:
        with LocalPostgres(max_connections=200) as server:
            yield server.url()


@contextmanager
def served(
    server: Server, column: str, url: str, *, setting: str = "0", aliases: int = 1
) -> Iterator[tuple[int, Callable[[], int]]]:
    """Yield the port of *server* with leaky_site, and a function that counts its sessions."""
    name = f"benchmark-{secrets.token_hex(6)}"
    environ = environment_of(Cell(server.name, "nothing", setting, column), url, name)
    environ["LEAKS_ALIASES"] = ",".join(["default", "second", "third"][:aliases])
    with sessions(url) as count, serving(server, sys.executable, environ) as running:
        yield running.address.port, lambda: count(name).total


def get(client: HTTPConnection, path: str) -> bytes:
    """Return the body of *path*. Raises RuntimeError for any status but 200."""
    client.request("GET", path)
    answer = client.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered with {answer.status}.")
    return body
