"""The Djangos and drivers of the matrix, their pins, and how their environments are made."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.leaks.servers import SERVERS

ROOT = Path(__file__).parents[3]
MADE = ROOT / ".venv-leaks"
PINS = ROOT / "constraints" / "pins.txt"
CVAT = Path(__file__).with_name("cvat.txt")

_SERVERS = ("uvicorn", "uvicorn-worker", "daphne", "hypercorn", "granian", "gunicorn", "gevent")
_FRAMEWORKS = ("djangorestframework",)
_DRIVERS = {"psycopg": "psycopg[binary,pool]", "psycopg2": "psycopg2-binary"}


class NotAvailableError(RuntimeError):
    """An environment can't be made on this machine; the text says why."""


@dataclass(frozen=True)
class Environment:
    """One Django with one driver, and where its pins are."""

    django: str
    driver: str
    requirements: tuple[str, ...]
    python: tuple[int, int] = (3, 12)
    exact: bool = False
    """Whether it has to be that Python and no newer one."""
    pins: Path = PINS
    servers: tuple[str, ...] = tuple(name for name in SERVERS if name != "cvat")

    @property
    def name(self) -> str:
        return f"cvat-{self.django}" if self.pins == CVAT else f"{self.series}-{self.driver}"

    @property
    def series(self) -> str:
        return ".".join(self.django.split(".")[:2])

    def has(self, setting: str) -> bool:
        """Return whether Django knows the setting here: its pool needs Django 5.1 and psycopg 3."""
        return setting != "pool" or (self.driver == "psycopg" and self.series != "4.2")

    def versions(self) -> list[str]:
        """Return the pins of what was asked for by name, drivers and servers."""
        names = {re.split(r"[=\[]", each)[0].lower() for each in self.requirements}
        return [line for line in self._constraints() if line.partition("==")[0] in names]

    def make(self) -> str:
        """Make the environment where it isn't there yet, and return the path of its Python."""
        folder = MADE / self.name
        python, made, constraints = (
            folder / "bin" / "python",
            folder / "made-of.txt",
            folder / "constraints.txt",
        )
        recipe = "\n".join([*self.requirements, *self._constraints()])
        if made.exists() and made.read_text() == recipe:
            return str(python)
        interpreter = _interpreter(self.python, exact=self.exact)
        shutil.rmtree(folder, ignore_errors=True)
        uv = shutil.which("uv")
        _run(
            [uv, "venv", "-q", "--python", interpreter, str(folder)]
            if uv
            else [interpreter, "-m", "venv", "--without-pip", str(folder)]
        )
        constraints.write_text("\n".join(self._constraints()))
        install = (
            [uv, "pip", "install", "--python", str(python)]
            if uv
            else [sys.executable, "-m", "pip", "--python", str(python), "install"]
        )
        _run([*install, "-q", "-c", str(constraints), *self.requirements])
        made.write_text(recipe)
        return str(python)

    def _constraints(self) -> list[str]:
        lines = self.pins.read_text().splitlines()
        # The project is pinned to one Django; which one is this environment's own choice.
        return (
            lines
            if self.pins == CVAT
            else [
                line for line in lines if not line.startswith(("django==", "djangorestframework=="))
            ]
        )


ENVIRONMENTS = {
    environment.name: environment
    for environment in [
        *(
            Environment(django, driver, (f"Django=={django}", package, *_SERVERS, *_FRAMEWORKS))
            for django in ("6.1.3", "6.0.10", "5.2.19", "4.2.30")
            for driver, package in _DRIVERS.items()
        ),
        # CVAT 2.11's own stack, to the letter.
        Environment(
            "4.2.6", "psycopg2",
            ("Django", "asgiref", "uvicorn", "psycopg2-binary", *_FRAMEWORKS),
            python=(3, 10), exact=True, pins=CVAT, servers=("cvat",),
        ),
    ]
}  # fmt: skip


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotAvailableError(f"{' '.join(command[:4])}... failed: {done.stderr.strip()[-400:]}")


@cache
def _interpreter(version: tuple[int, int], *, exact: bool) -> str:
    """Return a Python of that version, or of a newer one that every Django here knows."""
    minors = [version[1]] if exact else range(version[1], 15)
    names = [sys.executable, *(f"python3.{minor}" for minor in minors)]
    uv = shutil.which("uv")
    for name in filter(None, map(shutil.which, names)):
        # Asked rather than trusted: a shim of that name may lead nowhere.
        asked = subprocess.run(
            [name, "-c", "import sys; print(sys.version_info[1], sys._base_executable)"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        minor, _, path = asked.stdout.strip().partition(" ")
        if asked.returncode == 0 and int(minor) in minors:
            return path
    if uv:
        found = subprocess.run(
            [uv, "python", "find", f"3.{minors[0]}"], capture_output=True, text=True, check=False
        )
        if found.returncode == 0:
            return found.stdout.strip()
    raise NotAvailableError(
        f"no Python 3.{minors[0]} was found" + ("" if exact else ", nor a newer one")
    )
