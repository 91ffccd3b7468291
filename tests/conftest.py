"""Fixtures of every test folder; only those that need Django import it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support import polling, programs
from tests.support.second_session import Session


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


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Count the tests that run a second time; .ci/run adds the counts up."""
    if getattr(config.option, "lf", False):
        outcomes = ("passed", "failed", "error")
        tests = {each.nodeid for key in outcomes for each in terminalreporter.getreports(key)}
        terminalreporter.write_line(f"retried: {len(tests)}")


@pytest.fixture
def application_name() -> str:
    """A name by which a test finds its own sessions in pg_stat_activity."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def session_factory(django_db_setup, application_name) -> Iterator[Callable[..., Session]]:
    """Return a function that opens a session on an alias's database.

    libpq's parameters override the alias's. The application_name is the test's own unless one is
    given. Every session is closed when the test ends.
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
    """Return a function that runs a statement on a session of its own and returns the rows."""
    return session_factory(application_name="test-observer").execute


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    return polling.until


@pytest.fixture(scope="session")
def needs_program() -> Callable[[str], str]:
    """Return a function that gives a program's path, and skips the test where it is absent.

    With CONN_GUARD_REQUIRE=all the test fails instead.
    """
    return programs.require


@pytest.fixture
def pgbouncer(django_db_setup) -> Iterator[Callable[..., programs.PgBouncer]]:
    """Return a function that starts a PgBouncer before the test server: `pgbouncer("session")`."""
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


@pytest.fixture(autouse=True)
def _ended_connections_are_logged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread of an earlier test wait for a minute with its line of the log."""
    monkeypatch.setattr("conn_guard.connections.events.LEAST_PAUSE_S", 0.3)
    monkeypatch.setattr("conn_guard.connections.events._GATHER_S", 0.3)
