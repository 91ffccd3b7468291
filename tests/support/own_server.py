"""A server of a test's own, its sessions, and aliases that lead to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from django.db import connections

from tests.conftest import Session
from tests.support.polling import until
from tools.local_postgres import LocalPostgres

IDLE_FOR = "0.1s"
REAPERS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'conn_guard:{command}' ORDER BY pid"
)


class OwnServer:
    """A running server with a session of its superuser's that observes it."""

    def __init__(self, server: LocalPostgres) -> None:
        self.server = server
        self.major = server.major
        self._observer: Session | None = None
        self._opened: list[Session] = []

    def ask(self, statement: str, parameters: object = None) -> list[tuple[Any, ...]]:
        """Run *statement* as the superuser and return its rows."""
        if self._observer is None:
            self._observer = self._open(user="postgres", application_name="test-observer")
        return self._observer.execute(statement, parameters)

    def session(self, user: str = "app", **parameters: object) -> Session:
        """Open a session that clean() closes."""
        session = self._open(**{"user": user, "application_name": "shop", **parameters})
        self._opened.append(session)
        return session

    def rested(self, *sessions: Any) -> tuple[str, ...]:
        """Wait until *sessions* are idle for IDLE_FOR; return the arguments to reap them."""
        age = (
            "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s) AND clock_timestamp() -"
            " state_change > interval '0.12 s' AND wait_event = 'ClientRead'"
        )
        pids = [each.pid for each in sessions]
        until(lambda: self.ask(age, [pids]) == [(len(pids),)])
        return ("--database", "own", "--idle-for", IDLE_FOR)

    def alive(self, session: Any) -> bool:
        """Return whether *session* is still there."""
        return bool(self.ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [session.pid]))

    def reapers(self, command: str = "idle_reaper") -> list[int]:
        """Return the pids of the sessions that a command has: `idle_reaper` or `report`."""
        return [pid for (pid,) in self.ask(REAPERS.format(command=command))]

    @contextmanager
    def alias(self, name: str = "own", **changes: object) -> Iterator[dict[str, Any]]:
        """Let *name* be an alias of this server, with the role app unless *changes* has another."""
        settings = {
            **connections.settings["default"],
            "ENGINE": "django.db.backends.postgresql",
            "HOST": self.server.host,
            "PORT": str(self.server.port),
            "NAME": "postgres",
            "USER": "app",
            "PASSWORD": "",
            "OPTIONS": {},
            **changes,
        }
        connections.settings[name] = settings
        try:
            yield settings
        finally:
            with suppress(AttributeError):
                connections[name].close()
                del connections[name]
            del connections.settings[name]

    @contextmanager
    def process(
        self, folder: Path, *arguments: str, prelude: str = "", **changes: object
    ) -> Iterator[Process]:
        """Run the command in a process of its own, whose settings begin with *prelude*."""
        address = {
            "HOST": self.server.host,
            "PORT": str(self.server.port),
            "NAME": "postgres",
            "USER": "app",
            "PASSWORD": "",
        }
        changes = {**address, **changes}
        text = (
            f"{prelude}\nfrom tests.settings import *\nDATABASES['default'].update({changes!r})\n"
        )
        (folder / "own_settings.py").write_text(text)
        path = os.pathsep.join([str(folder), *(each for each in sys.path if each)])
        process = Process(
            [sys.executable, "-m", "django", "idle_reaper", *arguments],
            env={**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "own_settings"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=10)

    def forget(self) -> None:
        """Close the observer's session, before the server goes."""
        if self._observer is not None:
            self._observer.close()
        self._observer = None

    def clean(self) -> None:
        """Close every session that a test opened, and find that no reaper left one."""
        while self._opened:
            self._opened.pop().close()
        left = (
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <>"
            " pg_backend_pid()"
        )
        until(lambda: not self.ask(left))

    def _open(self, **parameters: object) -> Session:
        address = {"host": self.server.host, "port": self.server.port, "dbname": "postgres"}
        return Session(**{**address, **parameters})


@contextmanager
def own_server(
    *,
    roles: Mapping[str, str] | None = None,
    max_connections: int = 40,
    settings: Mapping[str, object] | None = None,
) -> Iterator[OwnServer]:
    """Start a server with *roles*, a name and its attributes each."""
    with LocalPostgres(max_connections=max_connections, settings=settings) as started:
        server = OwnServer(started)
        try:
            for name, attributes in (roles or {"app": "LOGIN"}).items():
                server.ask(f'CREATE ROLE "{name}" {attributes}')
            yield server
        finally:
            server.forget()


class Process(subprocess.Popen[str]):
    """A running command."""

    def end(self, signum: int = 0) -> tuple[int, list[dict[str, Any]], str]:
        """Send *signum* if given; return the exit code, the JSON lines and stderr."""
        if signum:
            self.send_signal(signum)
        stdout, stderr = self.communicate(timeout=45)
        return self.returncode, [json.loads(line) for line in stdout.splitlines()], stderr


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop the server's process *pid* for the block, so that it reacts to no signal."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Proxy:
    """A way to a server that can be cut: it hands on bytes until it is told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._refuses = False
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(timeout=10)
            assert not thread.is_alive()

    def cut(self) -> None:
        """End every connection that goes through here."""
        while self._pairs:
            for each in self._pairs.pop():
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def refuse(self) -> None:
        """From now on, close each new connection at once."""
        self._refuses = True

    def accept(self) -> None:
        """From now on, hand on each new connection again."""
        self._refuses = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                client.close()
                continue
            pair = (client, socket.create_connection(self._target))
            self._pairs.append(pair)
            for source, sink in (pair, pair[::-1]):
                thread = threading.Thread(target=self._hand_on, args=(source, sink), daemon=True)
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _hand_on(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
