"""This room holds the fixtures that every folder of tests shares; Django is imported by those that
need it alone.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests import polling, programs


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was measured: execnet ends a worker of pytest-xdist before coverage would."""
    coverage = sys.modules.get("coverage")
    if (
        coverage
        and hasattr(session.config, "workerinput")
        and (measuring := coverage.Coverage.current())
    ):
        measuring.save()


class Session:
    """A second session, opened with Django's driver but past Django, in autocommit."""

    def __init__(self, **parameters: object) -> None:
        from django.db.backends.postgresql.base import Database

        self.connection = Database.connect(**parameters)
        self.connection.autocommit = True
        self.application_name = parameters["application_name"]
        self.pid: int = self.execute("SELECT pg_backend_pid()")[0][0]

    def execute(self, statement: str, parameters: object = None) -> list[tuple[Any, ...]]:
        """Run *statement* and return its rows; BEGIN is a statement like any other."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def application_name() -> str:
    """A name by which a test finds its own sessions in pg_stat_activity."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def session_factory(django_db_setup, application_name) -> Iterator[Callable[..., Session]]:
    """Return a function that opens a session on an alias's database; libpq's parameters override
    the alias's.

    Its application_name is the test's own unless one is given; all are closed when the test ends.
    """
    from django.db import connections

    opened: list[Session] = []

    def open_session(alias: str = "default", **parameters: object) -> Session:
        settings = connections[alias].settings_dict
        keys = {
            "host": "HOST",
            "port": "PORT",
            "user": "USER",
            "password": "PASSWORD",
            "dbname": "NAME",
        }
        known = {name: settings[key] for name, key in keys.items() if settings[key]}
        session = Session(**{**known, "application_name": application_name, **parameters})
        opened.append(session)
        return session

    yield open_session
    for session in opened:
        session.close()


@pytest.fixture
def ask(session_factory) -> Callable[..., list[tuple[Any, ...]]]:
    """Return a function that runs a statement on a session that no other code knows of, and returns
    its rows.
    """
    return session_factory(application_name="test-observer").execute


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    return polling.until


@pytest.fixture(scope="session")
def needs_program() -> Callable[[str], str]:
    """Return a function that gives a program's path or skips the test (fails it, where
    CONN_GUARD_REQUIRE=all).
    """
    return programs.require


@pytest.fixture
def pgbouncer(django_db_setup) -> Iterator[Callable[..., programs.PgBouncer]]:
    """Return a function that starts a PgBouncer in front of the test server:
    `pgbouncer("transaction")`.
    """
    from django.db import connections

    with ExitStack() as stack:

        def start(mode: str = "transaction", **settings: object) -> programs.PgBouncer:
            server = connections["default"].settings_dict
            return stack.enter_context(programs.pgbouncer(server, mode, **settings))

        yield start


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The address of a Redis server that lives as long as the test run."""
    with programs.redis() as address:
        yield address
