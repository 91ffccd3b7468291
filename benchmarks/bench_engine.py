"""Compare the cost of a statement on conn_guard's engine with Django's own.

``python -m benchmarks.bench_engine`` measures single statements on one processor, with one thread
and with eight; ``--driver psycopg2`` takes the older driver.

The engines take turns in short blocks on the same server, so that other programs slow down both
alike. The result is the quickest twentieth of the blocks, which other programs disturbed least. The
last column is the processor time that the engine adds in the application's process.

``--gthread`` measures requests a second on gunicorn's gthread worker with CONN_MAX_AGE = 60 and 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from benchmarks.served import database, get, served, stay_on_one_processor
from tests.leaks.servers import SERVERS

ENGINES = {"default": "django.db.backends.postgresql", "guarded": "conn_guard.engine.postgresql"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--driver",
        choices=["psycopg", "psycopg2"],
        default="psycopg",
        help="the driver (%(default)s)",
    )
    parser.add_argument(
        "--blocks", type=int, default=1000, help="blocks of each engine for each line (%(default)s)"
    )
    parser.add_argument(
        "--queries", type=int, default=20, help="statements of each thread in a block (%(default)s)"
    )
    parser.add_argument(
        "--gthread",
        action="store_true",
        help="measure requests on gunicorn's gthread worker instead",
    )
    parser.add_argument(
        "--requests", type=int, default=2000, help="requests to each server (%(default)s)"
    )
    options = parser.parse_args()
    if not options.gthread:
        stay_on_one_processor()
    with database() as url:
        if options.gthread:
            _print_requests(url, options.requests)
        else:
            _print_statements(url, options)


def _print_statements(url: str, options: argparse.Namespace) -> None:
    print("| statement | threads | Django's engine | conn_guard's | ratio | processor time added |")
    print("|---|---|---|---|---|---|")
    for each in compare_statements(url, options.blocks, options.queries, driver=options.driver):
        print(
            f"| {each.statement} | {each.threads} | {each.django_us:.1f} µs |"
            f" {each.guarded_us:.1f} µs | {each.ratio:.2f} | {each.added_us:.1f} µs |",
            flush=True,
        )
    import django
    from django.db.backends.postgresql.base import Database

    print(
        f"\nDjango {django.__version__}, {Database.__name__} {Database.__version__.split()[0]},"
        f" Python {sys.version.split()[0]}"
    )


@dataclass(frozen=True)
class Compared:
    """The microseconds of a statement on each engine; *ratios* are those of the run's parts."""

    statement: str
    threads: int
    django_us: float
    guarded_us: float
    added_us: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        return self.guarded_us / self.django_us


def compare_statements(
    url: str,
    blocks: int,
    queries: int,
    *,
    driver: str = "psycopg",
    threads: tuple[int, ...] = (1, 8),
    parts: int = 5,
) -> Iterator[Compared]:
    """Configure Django in this process, and yield each statement with each number of threads."""
    if driver == "psycopg2":
        # Django uses psycopg 3 if it can be imported.
        sys.modules["psycopg"] = None  # type: ignore[assignment]
    import django
    import environ
    from django.conf import settings

    address = environ.Env.db_url_config(url)
    databases = {
        alias: {**address, "ENGINE": engine, "CONN_MAX_AGE": None}
        for alias, engine in ENGINES.items()
    }
    settings.configure(
        DATABASES=databases, INSTALLED_APPS=["conn_guard", "django.contrib.contenttypes"]
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", "contenttypes", verbosity=0)
    for name, statement in {
        "SELECT 1": _select_one,
        "an ORM get()": _orm_get,
        "SELECT 1 in atomic()": _in_atomic,
    }.items():
        for number in threads:
            seconds, processor_seconds = _take_turns(statement, number, blocks // number, queries)
            length = max(2, blocks // number // parts)
            starts = range(0, blocks // number - length + 1, length)
            added = _quickest(processor_seconds["guarded"]) - _quickest(
                processor_seconds["default"]
            )
            yield Compared(
                name,
                number,
                1e6 / queries / number * _quickest(seconds["default"]),
                1e6 / queries / number * _quickest(seconds["guarded"]),
                1e6 / queries * added,
                [
                    _quickest(seconds["guarded"][at : at + length])
                    / _quickest(seconds["default"][at : at + length])
                    for at in starts
                ],
            )


def _quickest(blocks: list[float]) -> float:
    return statistics.quantiles(blocks, n=20)[0]


def _select_one(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()


def _orm_get(connection: Any) -> None:
    from django.contrib.contenttypes.models import ContentType

    ContentType.objects.using(connection.alias).get(model="contenttype")


def _in_atomic(connection: Any) -> None:
    from django.db.transaction import atomic

    with atomic(connection.alias):
        _select_one(connection)


def _take_turns(
    statement: Callable[[Any], None], threads: int, blocks: int, queries: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return, by alias, the seconds of each block and the processor seconds of each thread in it.

    Every thread keeps its connections during the whole measurement.
    """
    from django.db import connections

    seconds: dict[str, list[float]] = {alias: [] for alias in ENGINES}
    processor_seconds: dict[str, list[float]] = {alias: [] for alias in ENGINES}
    turn = threading.Barrier(threads + 1)

    def work() -> None:
        for block in range(blocks):
            for alias in _order(block):
                connection = connections[alias]
                statement(connection)
                turn.wait()
                begun = time.thread_time()
                for _ in range(queries):
                    statement(connection)
                processor_seconds[alias].append(time.thread_time() - begun)
                turn.wait()
        connections.close_all()

    with ThreadPoolExecutor(threads) as executor:
        working = [executor.submit(work) for _ in range(threads)]
        for block in range(blocks):
            for alias in _order(block):
                turn.wait()
                begun = time.perf_counter()
                turn.wait()
                seconds[alias].append(time.perf_counter() - begun)
        for each in working:
            each.result()
    return seconds, processor_seconds


def _order(block: int) -> list[str]:
    """Return the order of the engines in *block*: each is first in half of the blocks."""
    return list(ENGINES) if block % 2 else list(reversed(ENGINES))


def _print_requests(url: str, requests: int) -> None:
    print("| gthread, one query a request | CONN_MAX_AGE = 0 | 60 | gain |")
    print("|---|---|---|---|")
    for column, name in {
        "django": "Django alone",
        "middleware": "with the app",
        "engine": "with the engine",
    }.items():
        rates = [_requests_a_second(column, url, setting, requests) for setting in ("0", "60")]
        print(
            f"| {name} | {rates[0]:.0f}/s | {rates[1]:.0f}/s | {rates[1] / rates[0]:.2f} |",
            flush=True,
        )


def _requests_a_second(
    column: str, url: str, setting: str, requests: int, clients: int = 4
) -> float:
    with served(SERVERS["gunicorn-gthread"], column, url, setting=setting) as (port, _):

        def ask(times: int) -> None:
            with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as client:
                for _ in range(times):
                    get(client, "/sync_query/")

        with ThreadPoolExecutor(clients) as executor:
            list(executor.map(ask, [requests // 10] * clients))
            begun = time.perf_counter()
            list(executor.map(ask, [requests // clients] * clients))
            return requests / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
