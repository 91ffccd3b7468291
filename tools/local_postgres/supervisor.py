"""The process that owns a server, and removes it when the owner's process is killed.

It runs as a script and imports nothing but the standard library. It reads one command a line and
writes one answer in JSON a line. When the pipe or the parent is gone, it ends the server and
removes the folder.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
INITDB = ["--username=postgres", "--encoding=UTF8", "--no-locale", "--no-sync"]
READY_WITHIN_SECONDS = 60
GONE_WITHIN_SECONDS = 20


class SupervisorError(Exception):
    """A failure in one line, which the parent raises."""


def unprivileged() -> dict[str, Any]:
    """Return the arguments that make `subprocess` run a program as another user than root.

    PostgreSQL refuses to run as root.
    """
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise SupervisorError(
        "PostgreSQL refuses to run as root, and this machine has neither a user postgres nor"
        " nobody."
    )


class Server:
    """One cluster in a temporary folder and, while it runs, its postmaster."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.account = unprivileged()
        self.bin = Path(spec["bin"])
        self.port: int | None = spec["port"]
        self.folder = self._make_folder()
        self.cluster = self.folder / "cluster"
        self.log = self.folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the cluster, with programs that its user can reach."""
        if self.account and not self._can("-x", self.bin / "postgres"):
            self.bin = self._copy_programs()
        secret = self.folder / "password"
        secret.write_text(self.spec["password"])
        self._give_away(secret)
        done = subprocess.run(
            [
                f"{self.bin}/initdb",
                f"--pgdata={self.cluster}",
                f"--auth={self.spec['auth']}",
                f"--pwfile={secret}",
                *INITDB,
            ],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=_environment(),
            timeout=120,
            check=False,
            **self.account,
        )
        secret.unlink()
        if done.returncode:
            raise SupervisorError(f"initdb failed: {_last_line(done.stderr or done.stdout)}")

    def start(self) -> None:
        """Start the postmaster and return once it takes connections; a restart keeps the port."""
        if self.process:
            return
        chosen = self.port
        for attempts_left in (4, 3, 2, 1, 0):
            self.port = chosen or _free_port()
            written = self.log.stat().st_size if self.log.exists() else 0
            if self._started():
                return
            with self.log.open(errors="replace") as log:
                log.seek(written)
                words = log.read()
            # Another program may take a free port before the server does.
            if chosen or not attempts_left or "could not bind" not in words:
                raise SupervisorError(f"postgres did not start: {_last_line(words)}")

    def _started(self) -> bool:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            **self.spec["settings"],
        }
        command = [str(self.bin / "postgres"), "-D", str(self.cluster)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=_environment(),
                **self.account,
            )
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            if self._is_ready(self.process.pid):
                return True
            time.sleep(0.02)
        self.halt("immediate")
        return False

    def _is_ready(self, pid: int) -> bool:
        # The first line is the postmaster's pid, the eighth its status; a file left by a crash
        # names another pid.
        with suppress(FileNotFoundError):
            lines = (self.cluster / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and int(lines[0]) == pid and lines[7].strip() == "ready"
        return False

    def halt(self, mode: str) -> None:
        """End the postmaster and keep the cluster; kill what doesn't leave in time."""
        if not self.process:
            return
        for number in (SIGNALS[mode], signal.SIGQUIT, signal.SIGKILL):
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GONE_WITHIN_SECONDS)
                break
        self.process = None

    def remove(self) -> None:
        """Remove everything that this supervisor made."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_folder(self) -> Path:
        # TMPDIR may lie below a private home, where the server's user can't go.
        for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108
            if self._can("-w", base):
                folder = Path(tempfile.mkdtemp(prefix="local_postgres-", dir=base))
                self._give_away(folder)
                return folder
        raise SupervisorError("There is no temporary folder that the server's user may write to.")

    def _can(self, test: str, path: Path | str) -> bool:
        command = ["/bin/sh", "-c", f'test {test} "$1"', "sh", str(path)]
        try:
            return subprocess.run(command, cwd="/", check=False, **self.account).returncode == 0
        except PermissionError as error:
            raise SupervisorError(
                "PostgreSQL refuses to run as root, and this root may not become another user."
            ) from error

    def _copy_programs(self) -> Path:
        # A wheel's programs find their libraries in a sibling of the package, by a relative RPATH.
        prefix = self.bin.parent
        package = prefix.parent
        target = self.folder / "programs"
        shutil.copytree(prefix, target / package.name / prefix.name, symlinks=True)
        if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
        for path in (target, *target.rglob("*")):
            self._give_away(path)
        return target / package.name / prefix.name / self.bin.name

    def _give_away(self, path: Path) -> None:
        if self.account:
            os.chown(path, self.account["user"], self.account["group"], follow_symlinks=False)


def _environment() -> dict[str, str]:
    # PGDATA, PGOPTIONS and the like are meant for the user's own server.
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {
        "LC_ALL": "C"
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error:" in line]
    return (telling or lines or ["it said nothing"])[-1].rpartition("FATAL:")[2].strip()


def _commands(parent: int) -> Iterator[str]:
    """Yield the parent's lines until it closes the pipe or is gone.

    A fork of the parent may hold the pipe open, so the parent's pid is watched too.
    """
    pending = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], 0.5)[0]:
            continue
        chunk = os.read(0, 65536)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


def _answer(**values: object) -> None:
    with suppress(OSError):
        os.write(1, json.dumps(values).encode() + b"\n")


def _obey(server: Server, command: str) -> None:
    verb, _, mode = command.partition(" ")
    try:
        if verb in {"halt", "restart"}:
            server.halt(mode)
        if verb in {"start", "restart"}:
            server.start()
    except (SupervisorError, OSError, subprocess.SubprocessError) as error:
        _answer(error=str(error))
    else:
        _answer(port=server.port)


def _own(spec: dict[str, Any], commands: Iterator[str]) -> None:
    try:
        server = Server(spec)
    except (SupervisorError, OSError) as error:
        _answer(error=str(error))
        return
    try:
        server.create()
        server.start()
        major = int((server.cluster / "PG_VERSION").read_text())
        _answer(port=server.port, log=str(server.log), major=major)
        for command in commands:
            _obey(server, command)
    except (SupervisorError, OSError, subprocess.SubprocessError) as error:
        _answer(error=str(error))
    finally:
        # A second SIGTERM would end this process before the folder is removed.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.halt("fast")
        server.remove()


def main(parent: int) -> None:
    """Own one server until *parent* ends it or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    commands = _commands(parent)
    if first := next(commands, None):
        _own(json.loads(first), commands)


if __name__ == "__main__":
    main(int(sys.argv[1]))
