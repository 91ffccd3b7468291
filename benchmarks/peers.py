"""The programs that the tables compare with, the projects that they run in, and all versions."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.local_postgres import find_binaries

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / ".nox" / "bench-pgactivity"
PINS = ROOT / "constraints" / "pins.txt"
PGACTIVITY = "django-pgactivity==1.8.0"


class PeerError(RuntimeError):
    """A peer can't be run on this machine; the text is one line."""


def pgactivity() -> str:
    """Return a Python in which django-pgactivity is installed; make its environment once.

    Raises PeerError.
    """
    python = MADE / "bin" / "python"
    made = MADE / "made-of.txt"
    pins = {line.partition("==")[0]: line for line in PINS.read_text().splitlines()}
    wanted = [PGACTIVITY, f"django=={metadata.version('django')}"]
    wanted += [pins["psycopg"].partition(";")[0].strip().replace("psycopg", "psycopg[binary]")]
    if made.exists() and made.read_text() == "\n".join(wanted):
        return str(python)
    shutil.rmtree(MADE, ignore_errors=True)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv:
        _run([uv, "venv", "-q", "--python", sys.executable, str(MADE)])
        _run([uv, "pip", "install", "-q", "--python", str(python), *wanted])
    else:
        _run([sys.executable, "-m", "venv", str(MADE)])
        _run([str(python), "-m", "pip", "install", "-q", *wanted])
    _run([str(python), "-c", "import pgactivity"])
    made.write_text("\n".join(wanted))
    return str(python)


def pgbouncer() -> str:
    """Return the path of PgBouncer. Raises PeerError."""
    # Debian keeps it where only root's PATH looks.
    if path := shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin"):
        return path
    raise PeerError("pgbouncer is not installed: apt-get install pgbouncer")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [""]
        raise PeerError(f"{Path(command[0]).name} failed: {lines[-1]}")
    return done.stdout


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, of the server and of *packages*, by name."""
    found = {"Python": platform.python_version()}
    if folder := find_binaries():
        found["PostgreSQL"] = _number([str(folder / "postgres"), "--version"])
    for package in packages:
        if package == "PgBouncer":
            found[package] = _number([pgbouncer(), "--version"])
        elif package == "django-pgactivity":
            found[package] = PGACTIVITY.partition("==")[2]
        else:
            found[package] = metadata.version(package)
    return found


def _number(command: list[str]) -> str:
    answer = re.search(r"\d+(\.\d+)+", _run(command))
    return answer[0] if answer else "unknown"


@dataclass(frozen=True)
class Project:
    """A Django project in a folder, whose commands run in processes of their own."""

    folder: Path
    name: str
    python: str = sys.executable

    def environ(self) -> dict[str, str]:
        """Return the environment of a command."""
        path = os.pathsep.join([str(self.folder), str(ROOT / "src")])
        return {**os.environ, "DJANGO_SETTINGS_MODULE": self.name, "PYTHONPATH": path}

    def command(self, *words: str) -> list[str]:
        """Return the command line of a management command."""
        return [self.python, "-m", "django", *words]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a management command."""
        return subprocess.Popen(
            self.command(*words),
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, within: float = 120) -> None:
        """Run a management command. Raises PeerError if it fails."""
        with self.start(*words) as process:
            try:
                _, told = process.communicate(timeout=within)
            except subprocess.TimeoutExpired:
                process.kill()
                raise PeerError(f"{words[0]} took more than {within:g} s") from None
        if process.returncode:
            lines = told.strip().splitlines() or [""]
            raise PeerError(f"{words[0]} exited with {process.returncode}: {lines[-1]}")

    @contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """Run a management command during the block."""
        process = self.start(*words)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def project(
    folder: Path,
    name: str,
    databases: Mapping[str, Mapping[str, object]],
    *,
    app: str = "conn_guard",
    python: str = sys.executable,
) -> Project:
    """Write a project with *databases*, each completed by Django's engine and a local address."""
    local = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "NAME": "postgres"}
    completed = {alias: {**local, **own} for alias, own in databases.items()}
    (folder / f"{name}.py").write_text(
        f"SECRET_KEY = 'bench'\nUSE_TZ = True\nINSTALLED_APPS = [{app!r}]\n"
        f"DATABASES = {completed!r}\n"
    )
    return Project(folder, name, python)


REAPERS = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'conn_guard:idle_reaper'
"""


def wait_for_reaper(ask: Callable[[str], Any], within: float = 20) -> None:
    """Wait until a reaper has logged in; *ask* runs a statement. Raises PeerError."""
    wait(lambda: ask(REAPERS).fetchone()[0] > 0, "the reaper did not log in", within)


def wait(happened: Callable[[], bool], otherwise: str, within: float = 20) -> None:
    """Wait until *happened* is true. Raises PeerError with *otherwise* as its text."""
    deadline = time.monotonic() + within
    while not happened():
        if time.monotonic() > deadline:
            raise PeerError(f"{otherwise} within {within:g} s")
        time.sleep(0.05)
