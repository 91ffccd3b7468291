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

CASES = {
    "queries, or fails after a query": ["query", "fail"],
    "queries in a thread that ends with it": ["start_thread"],
    "keeps a `connection.copy()`": ["copies"],
    "queries in `asyncio.run()`": ["run_asyncio"],
    "is a coroutine that queries": ["coroutine"],
    "leaves a raw `BEGIN`": ["begin"],
    "enters an atomic block and never leaves it": ["enter_atomic"],
}
PERSISTENT = "queries, with `CONN_MAX_AGE = None`"
CURES = ("alone", "app", "own", "line")


def left(running: Worker) -> dict[int, str]:
    """Return the backend pids of the sessions that stay for a second, and the state of each.

    Some workers query now and then: a session whose state changes meanwhile counts as idle.
    """
    staying = dict(running.sessions())
    for _ in range(4):
        threading.Event().wait(0.25)
        now = dict(running.sessions())
        staying = {
            pid: state if state == now[pid] else "idle"
            for pid, state in staying.items()
            if pid in now
        }
    return staying


def measure(running: Worker, jobs: list[str]) -> str:
    """Return what *jobs* leave, and whether three jobs after them work."""
    running.perform("reset")
    for job in jobs:
        running.perform(job)
    sessions = left(running)
    text = ", ".join([str(len(sessions)), *sorted({*sessions.values()} - {"idle"})])
    if "in transaction" in text:
        running.perform("query")
        if left(running) == sessions:
            return f"{text}, and each later task runs inside it"
    elif sessions:
        running.end_sessions(list(sessions))
    failed = ["raised" in running.perform("query") for _ in range(3)]
    if not any(failed):
        return text
    when = "once the server has ended it, " if sessions else ""
    then = "each later task fails" if all(failed) else "the next task fails"
    return f"{text}, and {when}{then if running.is_alive() else 'the worker ends'}"


def measure_all(run: Callable[..., Any], framework: str) -> dict[str, list[str]]:
    """Return a cell for each case and each cure."""
    cells: dict[str, list[str]] = {}
    for cure in CURES:
        if cure == "own" and not FRAMEWORKS[framework].has_own_cure:
            for row in cells.values():
                row.append("–")
            continue
        with run(framework, cure, "0") as running:
            for case, jobs in CASES.items():
                if case != "is a coroutine that queries" or FRAMEWORKS[framework].coroutines:
                    cells.setdefault(case, []).append(measure(running, jobs))
        with run(framework, cure, "None") as running:
            cells.setdefault(PERSISTENT, []).append(measure(running, ["query"]))
    return cells


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
                name = f"{framework}, {package} {version(package)}"
                for case, cells in measure_all(run, framework).items():
                    print(f"| {' | '.join([name, case, *cells])} |", flush=True)
        observer.close()


if __name__ == "__main__":
    main()
