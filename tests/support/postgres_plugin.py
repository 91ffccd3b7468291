"""One PostgreSQL server for the whole test run, started before pytest-django reads settings.

DATABASE_URL wins where it is set. Under pytest-xdist the controller starts the server, and the
workers inherit its address. A run that executes no test fails.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from importlib.util import find_spec

import pytest

from tools.local_postgres import LocalPostgres, LocalPostgresError

EXECUTED: set[str] = set()
SERVER = pytest.StashKey[LocalPostgres]()


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    # Not in pyproject.toml: pytest is strict there, and the pure tests run where pytest-django
    # isn't installed.
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    if find_spec("django") and not os.environ.get("DATABASE_URL"):
        try:
            server = early_config.stash[SERVER] = LocalPostgres().start()
        except LocalPostgresError as error:
            raise pytest.UsageError(str(error)) from None
        os.environ["DATABASE_URL"] = server.url()
    yield


def pytest_report_header() -> str:
    address = os.environ.get("DATABASE_URL", "none")
    return f"postgresql: {address.rpartition('@')[2]}"


def pytest_unconfigure(config: pytest.Config) -> None:
    if server := config.stash.get(SERVER, None):
        server.stop()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.outcome != "skipped":
        EXECUTED.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # A run in which every test was skipped has shown nothing. Workers of pytest-xdist leave the
    # verdict to the controller.
    asked_to_run = not session.config.option.collectonly and not hasattr(
        session.config, "workerinput"
    )
    if asked_to_run and exitstatus == pytest.ExitCode.OK and not EXECUTED:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
