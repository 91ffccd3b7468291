"""Count the sessions that are open while clients read slowly.

``python -m benchmarks.slow_readers`` lets 50 clients slowly read an answer of 5 MB, and prints the
peak of sessions in pg_stat_activity.
"""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

from benchmarks.served import COLUMNS, database, served
from tests.leaks.servers import SERVERS, Server

READERS = 50
READS = 40
PAUSE = 0.05
SERVED = [
    SERVERS["uvicorn"],
    # One thread for each reader; with fewer threads some readers would wait.
    replace(
        SERVERS["gunicorn-gthread"],
        arguments=SERVERS["gunicorn-gthread"].arguments.replace("--threads 8", "--threads 64"),
    ),
]


def main() -> None:
    print("| server | answer | bare Django: peak of sessions | with conn_guard |")
    print("|---|---|---|---|")
    with database() as url:
        for server in SERVED:
            for answer, path in {"HttpResponse": "/large/", "FileResponse": "/large_file/"}.items():
                peaks = [_peak(server, column, url, path) for column in COLUMNS]
                print(f"| {server.name} | {answer} | {peaks[0]} | {peaks[1]} |", flush=True)


def _peak(server: Server, column: str, url: str, path: str) -> int:
    """Return the peak of sessions from half a second after every answer has begun.

    Under ASGI a connection is given back while the answer is sent, not before.
    """
    with served(server, column, url) as (port, count):
        begun = threading.Barrier(READERS + 1)
        readers = [
            threading.Thread(target=_read_slowly, args=(port, path, begun)) for _ in range(READERS)
        ]
        for reader in readers:
            reader.start()
        begun.wait(60)
        time.sleep(0.5)
        peak = 0
        while any(reader.is_alive() for reader in readers):
            peak = max(peak, count())
            time.sleep(PAUSE)
        return peak


def _read_slowly(port: int, path: str, begun: threading.Barrier) -> None:
    with socket.socket() as client:
        # A small buffer, so that the answer waits in the server and not in the kernel.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        client.connect(("127.0.0.1", port))
        client.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        client.recv(4096)
        begun.wait(60)
        for _ in range(READS):
            client.recv(16384)
            time.sleep(PAUSE)
        while client.recv(1 << 20):
            pass


if __name__ == "__main__":
    main()
