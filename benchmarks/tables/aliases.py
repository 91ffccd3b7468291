"""The time that one command takes for many aliases."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.bench_reaper import CLIENT, NAIVE
from benchmarks.figures import Cells, ratios, spread
from benchmarks.peers import PeerError, project
from benchmarks.tables.table import Chart, Column, Figures, Measured, Size, Table, reason
from tools.local_postgres import LocalPostgres

COUNTS = (1, 10, 40)
OURS, BULK = "`idle_reaper --all-databases`", "a script of bulk statements"
IDLE = 0.1
SCRIPT = f"""
import sys, psycopg
for address in sys.argv[1:]:
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute({NAIVE!r}, ({CLIENT!r}, {IDLE})).fetchall()
"""
LEFT = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"


def _counts(size: Size) -> tuple[int, ...]:
    return (1, 3) if size is Size.TRIAL else COUNTS


def _name(count: int, method: str) -> str:
    return f"{count} {'alias' if count == 1 else 'aliases'}, {method}"


def rows(size: Size) -> list[str]:
    return [_name(count, method) for count in _counts(size) for method in (BULK, OURS)]


def measure(size: Size) -> Iterator[Measured]:
    import psycopg

    with (
        LocalPostgres(max_connections=2 * max(COUNTS) + 20) as server,
        tempfile.TemporaryDirectory() as folder,
        psycopg.connect(server.url(), autocommit=True) as watcher,
    ):
        for number in range(max(_counts(size))):
            watcher.execute(f"CREATE DATABASE shop{number}")
        first: dict[str, float] = {}
        for count in _counts(size):
            taken: dict[str, list[float]] = {BULK: [], OURS: []}
            commands = _commands(server, count, Path(folder))
            failed: set[str] = set()
            for _ in range(1 if size is Size.TRIAL else 5):
                for method in taken:
                    if method in failed:
                        continue
                    try:
                        seconds = _seconds(server, watcher, count, commands[method])
                    except Exception as error:  # noqa: BLE001 - the other rows are measured
                        failed.add(method)
                        yield _name(count, method), {"failed": reason(error)}
                        continue
                    taken[method].append(seconds)
                    yield _name(count, method), _cells(method, taken, first)
            for method, times in taken.items():
                if times:
                    first.setdefault(method, spread(times)["median"])


def _commands(
    server: LocalPostgres, count: int, folder: Path
) -> dict[str, tuple[list[str], dict[str, str] | None]]:
    """Return the command line and the environment of each method."""
    databases = {
        "default" if number == 0 else f"shop{number}": {
            "USER": "postgres",
            "NAME": f"shop{number}",
            "PORT": server.port,
        }
        for number in range(count)
    }
    ours = project(folder, f"bench_aliases_{count}", databases)
    words = ("idle_reaper", "--all-databases", "--idle-for", f"{IDLE}s", "-v", "0")
    only = ("--application-name", CLIENT)
    urls = [server.url(f"shop{number}") for number in range(count)]
    return {
        OURS: (ours.command(*words, *only), ours.environ()),
        BULK: ([sys.executable, "-c", SCRIPT, *urls], None),
    }


def _seconds(
    server: LocalPostgres,
    watcher: Any,
    count: int,
    command: tuple[list[str], dict[str, str] | None],
) -> float:
    import psycopg

    words, environ = command
    with ExitStack() as stack:
        for number in range(count):
            client = psycopg.connect(
                server.url(f"shop{number}"), application_name=CLIENT, autocommit=True
            )
            stack.callback(client.close)
            client.execute("SELECT 1")
        time.sleep(2 * IDLE)
        began = time.monotonic()
        done = subprocess.run(
            words, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [""]
            raise PeerError(f"exit {done.returncode}: {lines[-1]}")
        while watcher.execute(LEFT, (CLIENT,)).fetchone() != (0,):
            if time.monotonic() - began > 60:
                raise PeerError("sessions were left after 60 s")
            time.sleep(0.01)
        return time.monotonic() - began


def _cells(method: str, taken: dict[str, list[float]], first: dict[str, float]) -> Cells:
    seconds = taken[method]
    return {
        "ratio": ratios(seconds, taken[BULK]) if taken[BULK] else None,
        "growth": spread(seconds)["median"] / first[method] if method in first else None,
        "seconds": spread(seconds),
        "n": len(seconds),
    }


def says(of: Figures) -> str:
    most = COUNTS[-1]
    ours, bulk = (of(_name(most, method), "seconds") for method in (OURS, BULK))
    growth = of(_name(most, OURS), "growth")
    return (
        f"For {most} aliases the command takes {ours:.1f} seconds, {growth:.1f} times as long as"
        f" for one, because the start of Django is paid once.\n"
        f"The script takes {bulk:.1f} seconds.\n"
        "The script has no guard, no report and no exit code for a server that can't be reached."
    )


TABLE = Table(
    name="aliases",
    title="From 1 to 40 aliases",
    about=(
        "Each alias is a database of its own on one server, with one idle session.\n"
        "The time runs from the start of the process until the last session has gone.\n"
        "The script connects with psycopg to one database after the other and runs the bulk"
        " statement.\n"
        "The growth compares with the time of the same method for one alias."
    ),
    first="aliases and method",
    columns=(
        Column("ratio", "ratio to the script", ".2f"),
        Column("growth", "growth from 1", ".2f"),
        Column("seconds", "seconds until all have gone", ".2f"),
        Column("n", "n"),
    ),
    rows=rows,
    measure=measure,
    says=says,
    chart=Chart("seconds", "Seconds until one process has reaped every alias", ".1f"),
    within=80,
    packages=("Django", "psycopg"),
)
