"""Programs that tests run beside PostgreSQL; each ends with its test or with the run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.polling import until
from tools.local_postgres import unprivileged

PACKAGES = {"chromedriver": "chromium-driver", "promtool": "prometheus"}
# The shell ends the program by the signals $0 when its own input ends: also when the test run is
# killed.
LEASH = """
exec 3<&0; "$@" & program=$!
(cat <&3; for signal in $0; do kill -s $signal $program 2>/dev/null; done) & wait $program
"""

# From PgBouncer 1.23 on TERM waits for the clients; older ones know no QUIT.
PGBOUNCER_END = "QUIT TERM"


def require(name: str) -> str:
    """Return the path of a program, and skip the test where it is absent.

    With CONN_GUARD_REQUIRE=all the test fails instead.
    """
    # Debian keeps pgbouncer where only root's PATH looks.
    path = shutil.which(
        name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/usr/bin"
    )
    if not path:
        _skip(f"{name} is not installed: apt-get install {PACKAGES.get(name, name)}")
    return path


def require_postgis() -> Path:
    """Return the programs of a PostgreSQL with PostGIS; skip or fail as `require` does."""
    from django.core.exceptions import ImproperlyConfigured

    install = "apt-get install postgresql-postgis"
    try:
        from django.contrib.gis.db.backends.postgis import base  # noqa: F401
    except ImproperlyConfigured:
        _skip(f"GDAL is not installed: {install}")
    return _require_extension("postgis", install)


def require_pg_cron() -> Path:
    """Return the programs of a PostgreSQL with pg_cron; skip or fail as `require` does."""
    return _require_extension("pg_cron", "apt-get install 'postgresql-[0-9]+-cron$'")


def _require_extension(name: str, install: str) -> Path:
    controls = Path("/usr/share/postgresql").glob(f"*/extension/{name}.control")
    folders = [Path("/usr/lib/postgresql", each.parts[-3], "bin") for each in controls]
    found = [folder for folder in folders if (folder / "postgres").exists()]
    if not found:
        _skip(f"{name} is not installed: {install}")
    return found[-1]


def _skip(reason: str) -> NoReturn:
    if os.environ.get("CONN_GUARD_REQUIRE") == "all":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(make_command: Callable[[Path, int], list[str]], end: str = "TERM") -> Iterator[int]:
    """Run a program as another user than root, give its port, and end it by the signals *end*.

    *make_command* returns the command for a folder and a port.
    """
    account = unprivileged()
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="conn_guard-") as name:
        folder = Path(name)
        command = make_command(folder, port)
        if account:
            for path in (folder, *folder.iterdir()):
                os.chown(path, account["user"], account["group"])
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", LEASH, end, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                **account,
            )
        try:
            until(lambda: is_open(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield port
        finally:
            process.communicate(timeout=20)


@dataclass(frozen=True)
class PgBouncer:
    """A running PgBouncer; `settings` is the part of an alias that differs to go through it."""

    port: int
    user: str
    host: str = "127.0.0.1"

    @property
    def settings(self) -> dict[str, Any]:
        return {"HOST": self.host, "PORT": str(self.port)}

    def url(self, dbname: str) -> str:
        return f"postgres://{self.user}@{self.host}:{self.port}/{dbname}"


@contextmanager
def pgbouncer(server: dict[str, Any], mode: str, **settings: object) -> Iterator[PgBouncer]:
    """Put a PgBouncer before *server*, the settings of an alias.

    *settings* are further lines of its ini file.
    """
    program = require("pgbouncer")
    user = server["USER"] or "postgres"

    def configure(folder: Path, port: int) -> list[str]:
        users = folder / "users.txt"
        users.write_text(f'"{user}" "{server["PASSWORD"] or ""}"\n')
        options = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
            "admin_users": user,
            "pool_mode": mode,
            **settings,
        }
        lines = "\n".join(f"{key} = {value}" for key, value in options.items())
        target = f"* = host={server['HOST'] or '127.0.0.1'} port={server['PORT'] or 5432}"
        (folder / "pgbouncer.ini").write_text(f"[databases]\n{target}\n\n[pgbouncer]\n{lines}\n")
        return [program, str(folder / "pgbouncer.ini")]

    with running(configure, end=PGBOUNCER_END) as port:
        yield PgBouncer(port, user)


@contextmanager
def redis() -> Iterator[str]:
    """Run a Redis server that keeps nothing; give its address."""
    program = require("redis-server")
    with running(
        lambda folder, port: [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    ) as port:
        yield f"redis://127.0.0.1:{port}/0"


def end_all(processes):
    """Kill those of *processes* that still run, and close the pipes of all."""
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)
