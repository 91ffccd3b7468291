"""Count the requests that fail after the server has ended idle sessions.

``python -m benchmarks.bench_ended_sessions`` ends the sessions of all threads while the threads are
idle, as a reaper, an ``idle_session_timeout`` or a failover does. It does so with Django's engine
and with conn_guard's, and prints the table of ``docs/explanation/the-engine.md``.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.served import database

ENGINES = {
    "Django's": "django.db.backends.postgresql",
    "conn_guard's": "conn_guard.engine.postgresql",
}
KINDS: dict[str, dict[str, Any]] = {
    "CONN_MAX_AGE = 0": {"CONN_MAX_AGE": 0},
    "CONN_MAX_AGE = None": {"CONN_MAX_AGE": None},
    "None with health checks": {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True},
    "a pool": {"OPTIONS": {"pool": {"min_size": 2, "max_size": 50, "timeout": 20}}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--requests",
        type=int,
        default=300,
        help="requests in a cell, a multiple of 50 (%(default)s)",
    )
    options = parser.parse_args()
    import django
    import environ
    from django.conf import settings

    with database() as url:
        databases: dict[str, dict[str, Any]] = {"default": environ.Env.db_url_config(url)}
        settings.configure(
            DATABASES=databases,
            SECRET_KEY=secrets.token_hex(),
            INSTALLED_APPS=["conn_guard"],
            LOGGING_CONFIG=None,
        )
        django.setup()
        from tests.support.ended_sessions import SHAPES, Ended

        print(f"| engine | settings | {' | '.join(SHAPES)} |")
        print("|---|---|" + "---|" * len(SHAPES))
        for engine, path in ENGINES.items():
            for kind, own in KINDS.items():
                cells = []
                for shape in SHAPES.values():
                    with _alias(path, own) as (alias, end_sessions):
                        cells.append(
                            f"{shape(Ended(alias, end_sessions), options.requests)}"
                            f"/{options.requests}"
                        )
                print(f"| {engine} | {kind} | {' | '.join(cells)} |", flush=True)


@contextmanager
def _alias(engine: str, own: dict[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the name of an alias on *engine*, and a function that ends its sessions.

    The function returns when the sessions have left the server.
    """
    from django.db import connections
    from django.db.backends.postgresql.base import Database

    from tests.support.polling import until

    name = "ended_sessions"
    default = connections.settings["default"]
    options = {**default["OPTIONS"], **own.get("OPTIONS", {}), "application_name": name}
    connections.settings[name] = {**default, **own, "ENGINE": engine, "OPTIONS": options}
    keys = {
        "host": "HOST",
        "port": "PORT",
        "user": "USER",
        "password": "PASSWORD",
        "dbname": "NAME",
    }
    outside = Database.connect(
        **{key: default[value] for key, value in keys.items() if default[value]}
    )
    outside.autocommit = True

    def ask(statement: str, parameters: list[object]) -> list[tuple[Any, ...]]:
        with outside.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()  # type: ignore[no-any-return]

    def end_sessions() -> None:
        ended = [
            pid
            for (pid,) in ask(
                "SELECT pid FROM pg_stat_activity WHERE application_name = %s", [name]
            )
        ]
        ask("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [ended])
        until(lambda: not ask("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", [ended]))

    try:
        yield name, end_sessions
    finally:
        if getattr(connections[name], "pool", None):
            connections[name].close_pool()
        connections[name].close()
        del connections[name], connections.settings[name]
        outside.close()


if __name__ == "__main__":
    main()
