"""Runs of the command as values, and a client that leaves things undone."""

from __future__ import annotations

import io
import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.core.management import CommandError, call_command


@dataclass
class Run:
    """One run: its exit code, what it said of each session, and its sums."""

    exit_code: int = 0
    error: str = ""
    stderr: str = ""
    sessions: dict[int, dict[str, Any]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def fate(self, session: Any) -> tuple[str | None, str | None]:
        """Return what was done about a session and why; nothing where the run didn't name it."""
        event = self.sessions.get(session.pid, {})
        return event.get("action"), event.get("reason")

    @property
    def summary(self) -> dict[str, Any]:
        """The sums of the only alias."""
        (only,) = self.summaries.values()
        return only


def reap(*arguments: str, **options: object) -> Run:
    """Run the command with JSON lines and return what it reported."""
    run, stdout, stderr = Run(), io.StringIO(), io.StringIO()
    try:
        call_command(
            "idle_reaper", *arguments, format="json", stdout=stdout, stderr=stderr, **options
        )
    except CommandError as error:
        run.exit_code, run.error = error.returncode, str(error)
    run.stderr = stderr.getvalue()
    for line in stdout.getvalue().splitlines():
        event = json.loads(line)
        if event["event"] == "session":
            run.sessions[event["pid"]] = event
        elif event["event"] == "error":
            run.errors.append(event)
        else:
            run.summaries[event["alias"]] = event
    return run


class RawClient:
    """A client that writes PostgreSQL's protocol itself, and can leave out what drivers send."""

    def __init__(self, host: str, port: int, *, receive_buffer: int = 0, **parameters: str) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        self.socket.connect((host, port))
        pairs = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items())
        self.socket.sendall(struct.pack("!II", len(pairs) + 9, 196608) + pairs + b"\0")
        self.pid = 0
        for kind, body in self.messages():
            assert kind != b"E", body
            if kind == b"K":
                self.pid = struct.unpack("!I", body[:4])[0]

    def send(self, statement: str) -> None:
        """Send a statement and read nothing."""
        body = statement.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the server's messages up to the one by which it is ready again."""
        kind = b""
        while kind != b"Z":
            kind, length = self._read(1), struct.unpack("!I", self._read(4))[0]
            yield kind, self._read(length - 4)

    def close(self) -> None:
        self.socket.close()

    def _read(self, size: int) -> bytes:
        read = b""
        while len(read) < size:
            piece = self.socket.recv(size - len(read))
            assert piece, "the server closed the connection"
            read += piece
        return read


def skip_where_refused(ask: Callable[[str], Any], value: str) -> None:
    """Skip a test of a name or setting that PostgreSQL refuses from 19 on."""
    refused = "\n" in value or value == "standard_conforming_strings = off"
    if refused and int(ask("SHOW server_version_num")[0][0]) >= 190000:
        pytest.skip("PostgreSQL refuses it from 19 on")


@contextmanager
def new_role(ask: Any, name: str, attributes: str = "LOGIN", *, grants: str = "") -> Iterator[str]:
    """Give a role that is dropped again; *grants* are roles that it becomes a member of."""
    quoted = '"' + name.replace('"', '""') + '"'
    ask(f"CREATE ROLE {quoted} {attributes}")
    if grants:
        ask(f"GRANT {grants} TO {quoted}")
    try:
        yield name
    finally:
        ask(f"DROP ROLE {quoted}")
