"""Measures what the workers of frameworks leave in pg_stat_activity.

``python -m tests.postgres.framework_site [FRAMEWORK]...`` starts a PostgreSQL and a Redis of its
own and prints the rows of docs/how-to/background-frameworks.md; all of them take a quarter of an
hour.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import django
from django.conf import settings

from tests.postgres.framework_site.workers import FRAMEWORKS, Worker, worker
from tests.support import programs
from tools.local_postgres import LocalPostgres

# By CONN_MAX_AGE; the last one spoils its worker. None without jobs: how tasks fare once the server
# has ended what a task that queries left.
ROWS: dict[str, dict[str, list[str] | None]] = {
    "0": {
        "queries, or fails after a query": ["query", "fail"],
        "queries, and the server ends the session": None,
        "queries in a thread that ends with it": ["start_thread"],
        "keeps a `connection.copy()`": ["copies"],
        "queries in `asyncio.run()`": ["run_asyncio"],
        "is a coroutine that queries": ["coroutine"],
        "leaves a raw `BEGIN`": ["begin"],
        "enters an atomic block and never leaves it": ["enter_atomic"],
    },
    "None": {
        "queries, with `CONN_MAX_AGE = None`": ["query"],
        "the same, and the server ends the session": None,
    },
}
HEAD = ["| the task | Django alone | the app | its own cure | one line |", "|---|---|---|---|---|"]
CURES = ("alone", "app", "own", "line")


def left(running: Worker) -> dict[int, str]:
    """Return the backend pids of the sessions that stay for a second, and the state of each.

    Some workers query now and then: a session whose state changes meanwhile counts as idle. The
    first look waits for what a worker does after a task.
    """
    threading.Event().wait(0.5)
    staying = dict(running.sessions())
    for _ in range(2):
        threading.Event().wait(0.25)
        now = dict(running.sessions())
        staying = {
            pid: state if state == now[pid] else "idle"
            for pid, state in staying.items()
            if pid in now
        }
    return staying


def left_by(running: Worker, jobs: list[str] | None) -> str:
    """Return how many sessions *jobs* leave, or how tasks fare once the server ended them."""
    before = dict(running.sessions())
    running.perform("reset")
    survivors = before.keys() & dict(running.sessions())
    for job in jobs or ["query"]:
        running.perform(job)
    sessions = {pid: state for pid, state in left(running).items() if pid not in survivors}
    if jobs is None:
        running.end_sessions(list(sessions))
        return later_tasks(running) or "later tasks work"
    text = ", ".join([str(len(sessions)), *sorted({*sessions.values()} - {"idle"})])
    if jobs == ["enter_atomic"]:
        later = later_tasks(running)
        if sessions and not later and sessions.items() <= left(running).items():
            later = "later tasks run in it"
        text = "; ".join(filter(None, [text, later]))
    return text


def later_tasks(running: Worker) -> str:
    failed = ["raised" in running.perform("query") for _ in range(3)]
    if not running.is_alive():
        return "the worker ends"
    return "later tasks fail" if all(failed) else "the next task fails" if any(failed) else ""


def measure(run: Callable[..., Any], framework: str) -> dict[str, list[str]]:
    """Return the rows of a framework's table, with a cell for each cure."""
    table: dict[str, list[str]] = {}
    for cure in CURES:
        for age, rows in ROWS.items():
            rows = {
                label: jobs
                for label, jobs in rows.items()
                if jobs != ["coroutine"] or FRAMEWORKS[framework].coroutines
            }
            if cure == "own" and not FRAMEWORKS[framework].has_own_cure:
                cells = dict.fromkeys(rows, "-")
            else:
                with run(framework, cure, age) as running:
                    cells = {label: left_by(running, jobs) for label, jobs in rows.items()}
            for label, cell in cells.items():
                table.setdefault(label, []).append(cell)
    return table


def main() -> None:
    from tests.conftest import Session

    settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}})
    django.setup()
    with LocalPostgres(max_connections=100) as server, programs.redis() as redis:
        address = {"host": server.host, "port": server.port, "user": "postgres"}
        observer = Session(**address, dbname="postgres", application_name="observer")
        url = f"postgres://postgres@{server.host}:{server.port}/postgres"

        def run(framework: str, cure: str, age: str) -> Any:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            return worker(
                framework,
                folder,
                observer.execute,
                CURE=cure,
                CONN_MAX_AGE=age,
                REDIS_URL=redis,
                DATABASE_URL=url,
            )

        with tempfile.TemporaryDirectory() as scratch:
            for framework in sys.argv[1:] or FRAMEWORKS:
                package = FRAMEWORKS[framework].package
                rows = [f"### {framework}: {package} {version(package)}", "", *HEAD]
                for label, cells in measure(run, framework).items():
                    rows.append(f"| {' | '.join([label, *cells])} |")
                sys.stdout.write("\n".join([*rows, "", ""]))
                sys.stdout.flush()
        observer.close()


if __name__ == "__main__":
    main()
