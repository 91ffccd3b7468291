"""The time to end idle sessions of which none is used."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench_reaper import Method, methods, seconds_until_gone
from benchmarks.figures import Cells, ratios, spread
from benchmarks.peers import PeerError, pgactivity
from benchmarks.tables.table import Chart, Column, Figures, Measured, Size, Table, reason
from tools.local_postgres import LocalPostgres, LocalPostgresError

METHODS = {
    "naive": "one bulk statement",
    "list": "a loop of `pg_terminate_backend`",
    "ours": "the reaper, in a process that runs",
    "command": "`manage.py idle_reaper`",
    "pgactivity": "`manage.py pgactivity --terminate`",
}
ROUNDS = {100: 5, 500: 5, 3000: 2}
MOST_FOR_A_COMMAND = 500
"""To open 3,000 sessions takes long, and the start of Django hardly counts there."""
IDLE = 0.05


def _rounds(size: Size) -> dict[int, int]:
    return {3: 1, 6: 1} if size is Size.TRIAL else ROUNDS


def _name(count: int, method: str) -> str:
    return f"{count:,} sessions, {METHODS[method]}"


def rows(size: Size) -> list[str]:
    return [_name(count, method) for count in _rounds(size) for method in _methods(count)]


def _methods(count: int) -> list[str]:
    return [each for each in METHODS if each != "command" or count <= MOST_FOR_A_COMMAND]


def measure(size: Size) -> Iterator[Measured]:
    import psycopg

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    chosen = [*METHODS]
    python = None
    try:
        python = pgactivity()
    except PeerError as error:
        chosen.remove("pgactivity")
        for count in _rounds(size):
            yield _name(count, "pgactivity"), {"failed": reason(error)}
    server = _server(max(_rounds(size)))
    with server, tempfile.TemporaryDirectory() as folder:
        ways = methods(chosen, server.port, Path(folder), python)
        with psycopg.connect(server.url(), autocommit=True) as watcher:
            first: dict[str, float] = {}
            for count, rounds in _rounds(size).items():
                if count > int(str(server.settings["max_connections"])):
                    continue
                of = {name: ways[name] for name in _methods(count) if name in ways}
                for name, cells in _count(server.port, of, watcher, count, rounds, first):
                    yield _name(count, name), cells


def _server(count: int) -> LocalPostgres:
    """Return a server with so many slots, or for 500 if its memory is too small for more."""
    try:
        return LocalPostgres(max_connections=count + 20).start()
    except LocalPostgresError:
        return LocalPostgres(max_connections=520).start()


def _count(
    port: int,
    ways: dict[str, Method],
    watcher: object,
    count: int,
    rounds: int,
    first: dict[str, float],
) -> Iterator[Measured]:
    """Yield a method and its cells; *first* holds the medians of the smallest number."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    failed: set[str] = set()
    for _ in range(rounds):
        for name, method in ways.items():
            if name in failed:
                continue
            try:
                taken[name].append(seconds_until_gone(port, method, watcher, count, IDLE))
            except Exception as error:  # noqa: BLE001 - the other rows are measured
                failed.add(name)
                yield name, {"failed": reason(error)}
                continue
            yield name, _cells(name, taken, first)
    for name, seconds in taken.items():
        if seconds:
            first.setdefault(name, spread(seconds)["median"])


def _cells(name: str, taken: dict[str, list[float]], first: dict[str, float]) -> Cells:
    seconds = taken[name]
    cells: Cells = {"seconds": spread(seconds), "n": len(seconds)}
    cells["ratio"] = ratios(seconds, taken["naive"]) if taken["naive"] else None
    cells["growth"] = spread(seconds)["median"] / first[name] if name in first else None
    return cells


def says(of: Figures) -> str:
    ours, command, peer = (
        of(_name(500, method), "ratio") for method in ("ours", "command", "pgactivity")
    )
    text = (
        f"For 500 sessions the reaper takes {ours:.2f} times the bulk statement, because it checks"
        f" each session again in the statement that signals it; as a command, with the start of"
        f" Django, {command:.1f} times, and django-pgactivity {peer:.1f} times.\n"
        "The bulk statement is the right tool where no session can wake."
    )
    try:
        growth = of(_name(3000, "ours"), "growth")
        bulk = of(_name(3000, "naive"), "growth")
    except KeyError:
        return text
    return text + (
        f"\nFrom 100 to 3,000 sessions, 30 times as many, the reaper's time grows {growth:.0f}-fold"
        f" and the bulk statement's {bulk:.0f}-fold."
    )


TABLE = Table(
    name="rest",
    title="Reaping at rest",
    about=(
        "All sessions are idle, and none is used again.\n"
        "The time runs from the start of the method until the last session has gone.\n"
        "The methods take turns; the ratio is the median of the rounds' own ratios to the bulk"
        " statement.\n"
        "The bulk statement and the loop use a connection that is open already.\n"
        "The growth compares with the time of the same method for 100 sessions."
    ),
    first="sessions and method",
    columns=(
        Column("ratio", "ratio to the bulk statement", ".2f"),
        Column("growth", "growth from 100", ".1f"),
        Column("seconds", "seconds until all have gone", ".3f"),
        Column("n", "n"),
    ),
    rows=rows,
    measure=measure,
    says=says,
    chart=Chart("ratio", "Time to end idle sessions, ratio to one bulk statement", ".2f"),
    within=200,
    packages=("Django", "psycopg", "django-pgactivity"),
)
