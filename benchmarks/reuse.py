"""Count the backends that serve 50 requests over persistent connections.

``python -m benchmarks.reuse`` uses gunicorn's sync and gthread workers with CONN_MAX_AGE = 60.
Django alone uses one backend on sync, and at most one for each thread on gthread.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

from benchmarks.served import COLUMNS, database, get, served
from tests.leaks.servers import SERVERS

REQUESTS = 50
CLIENTS = 5


def main() -> None:
    print("| server | bare Django: backends for 50 requests | with conn_guard |")
    print("|---|---|---|")
    with database() as url:
        for name in ("gunicorn-sync", "gunicorn-gthread"):
            backends = [_backends(name, column, url) for column in COLUMNS]
            print(f"| {name} | {backends[0]} | {backends[1]} |", flush=True)


def _backends(name: str, column: str, url: str) -> int:
    with served(SERVERS[name], column, url, setting="60") as (port, _):

        def ask(_: int) -> bytes:
            client = HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                return get(client, "/backend_pid/")
            finally:
                client.close()

        with ThreadPoolExecutor(CLIENTS) as executor:
            return len(set(executor.map(ask, range(REQUESTS))))


if __name__ == "__main__":
    main()
