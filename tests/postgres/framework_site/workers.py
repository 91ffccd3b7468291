"""Runs a framework's worker beside a program that sends it jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.polling import until
from tests.support.programs import LEASH, free_port, is_open

SITE = "tests.postgres.framework_site"


class Framework(NamedTuple):
    """How to start the worker of a framework; one without a command works in its sender."""

    package: str
    module: str
    command: str
    needs: tuple[str, ...]
    target: str = ""
    coroutines: bool = False
    has_own_cure: bool = False


UVICORN = (
    "uvicorn --ws wsproto --log-level warning --lifespan off --port {port}"
    f" {SITE}.with_channels:application"
)
FRAMEWORKS = {
    "Huey": Framework(
        "huey", "huey", "django run_huey --workers 1 --quiet", ("huey",), has_own_cure=True
    ),
    "Dramatiq": Framework(
        "dramatiq",
        "dramatiq",
        f"dramatiq {SITE}.with_dramatiq --processes 1 --threads 1",
        ("django_dramatiq", "redis"),
        coroutines=True,
        has_own_cure=True,
    ),
    "Procrastinate": Framework(
        "procrastinate",
        "procrastinate",
        "django procrastinate worker --concurrency 1",
        ("procrastinate", "psycopg"),
        coroutines=True,
    ),
    "Django Tasks": Framework(
        "django-tasks-db",
        "django_tasks",
        "django db_worker --interval 0.1 --no-startup-delay --no-reload",
        ("django_tasks_db",),
        coroutines=True,
    ),
    "Django Tasks on RQ": Framework(
        "django-tasks-rq",
        "django_tasks_rq",
        "django rqworker --worker-class rq.SimpleWorker --job-class django_tasks_rq.Job {name}",
        ("django_tasks_rq", "redis"),
        coroutines=True,
    ),
    "APScheduler": Framework("apscheduler", "apscheduler", "", ("apscheduler",)),
    "Channels, sync": Framework("channels", "channels", UVICORN, ("channels", "wsproto"), "/sync/"),
    "Channels, async": Framework(
        "channels", "channels", UVICORN, ("channels", "wsproto"), "/async/", has_own_cure=True
    ),
}


class Worker:
    """A running worker: how to hand it a job, and how to find its sessions."""

    def __init__(self, name: str, folder: Path, ask: Callable[..., list[tuple[Any, ...]]]) -> None:
        self.name = name
        self.folder = folder
        self.ask = ask
        self.sender: subprocess.Popen[bytes]
        self.processes: list[subprocess.Popen[bytes]] = []

    def perform(self, job: str) -> dict[str, Any]:
        """Return what *job* returned or raised, once it or the worker has ended."""
        path = self.folder / uuid.uuid4().hex
        assert self.sender.stdin
        self.sender.stdin.write(f"{job} {path}\n".encode())
        self.sender.stdin.flush()
        until(lambda: path.exists() or not self.is_alive(), timeout=60)
        if not path.exists():
            return {"raised": "the worker has ended"}
        outcome: dict[str, Any] = json.loads(path.read_text())
        return outcome

    def sessions(self) -> list[tuple[int, str]]:
        """Return the backend pid and the state of each session of the worker's connections."""
        return self.ask(
            "SELECT pid, state FROM pg_stat_activity WHERE application_name = %s", [self.name]
        )

    def end_sessions(self, pids: list[int]) -> None:
        """End these sessions, as an operator does, and return when they have left."""
        self.ask("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
        until(lambda: not self.ask("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", [pids]))

    def is_alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def worker(
    framework: str,
    folder: Path,
    ask: Callable[..., list[tuple[Any, ...]]],
    **environment: str,
) -> Iterator[Worker]:
    """Run the worker of *framework* on a new database.

    *environment* has the CURE, the CONN_MAX_AGE and the REDIS_URL.
    """
    name = f"frameworks_{uuid.uuid4().hex[:12]}"
    running = Worker(name, folder, ask)
    port = free_port()
    variables = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": f"{SITE}.settings",
        "FRAMEWORK": FRAMEWORKS[framework].module,
        "TARGET": FRAMEWORKS[framework].target,
        "DATABASE_NAME": name,
        "NAMESPACE": name,
        "FOLDER": str(folder),
        "PORT": str(port),
        **environment,
    }
    ask(f"CREATE DATABASE {name}")
    with (folder / "log").open("wb") as log, ExitStack() as stack:
        stack.callback(ask, f"DROP DATABASE {name} WITH (FORCE)")

        def start(command: str, application_name: str, *leash: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [*leash, sys.executable, "-m", *command.split()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if not leash else log,
                stderr=log,
                env={**variables, "APPLICATION_NAME": application_name},
            )
            stack.callback(process.communicate, timeout=30)
            running.processes.append(process)
            return process

        command = FRAMEWORKS[framework].command.format(port=port, name=name)
        running.sender = start(f"{SITE}.send", "framework_site_sender" if command else name)
        assert running.sender.stdout
        assert running.sender.stdout.readline() == b"ready\n", running.log()
        if command:
            start(command, name, "/bin/sh", "-c", LEASH, "TERM")
        if FRAMEWORKS[framework].target:
            until(lambda: is_open(port) or not running.is_alive())
        yield running
