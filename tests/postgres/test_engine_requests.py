"""No request on the engine fails while the server ends idle sessions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import django
import pytest
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from tests.support import ended_sessions
from tests.support.ended_sessions import SHAPES, Ended
from tools.local_postgres import LocalPostgres

ROOT = Path(__file__).resolve().parent.parent.parent
REQUESTS = 300


@pytest.fixture(scope="module")
def server():
    """A server with slots for all threads and for sessions that are still ending."""
    with LocalPostgres(max_connections=4 * ended_sessions.THREADS) as started:
        yield started


@pytest.fixture
def make_alias(make_engine, session_factory, server):
    """Return a function that adds an alias on that server."""

    def make(**settings):
        alias = make_engine(
            HOST=server.host, PORT=str(server.port), USER="postgres", NAME="postgres", **settings
        )
        there = {"host": server.host, "port": server.port, "user": "postgres", "dbname": "postgres"}
        alias.ask = session_factory(**there, application_name="test-observer").execute
        return alias

    return make


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", [None, "pool"], ids=["persistent", "pool"])
def test_no_request_fails_when_its_session_was_ended_while_idle(make_alias, shape, kind):
    if kind == "pool":
        if django.VERSION < (5, 1) or not is_psycopg3:
            pytest.skip("Django's pool came with 5.1, for psycopg 3")
        alias = make_alias(
            options={"pool": {"min_size": 2, "max_size": ended_sessions.THREADS, "timeout": 60}}
        )
    else:
        alias = make_alias(CONN_MAX_AGE=None)
    assert shape(Ended(alias.name, alias.end_sessions), REQUESTS) == 0


def test_plain_django_fails_here(make_alias):
    """Without the engine the same requests fail, so the load of these tests is sufficient."""
    alias = make_alias(CONN_MAX_AGE=None, engine="django.db.backends.postgresql")
    two_queries = SHAPES["two queries half a second apart"]
    assert (
        two_queries(Ended(alias.name, alias.end_sessions), ended_sessions.THREADS)
        == ended_sessions.THREADS
    )


def test_a_restart_under_load_fails_only_the_requests_in_flight(make_engine):
    with LocalPostgres(max_connections=20) as server:
        alias = make_engine(
            CONN_MAX_AGE=None,
            HOST=server.host,
            PORT=str(server.port),
            USER="postgres",
            NAME="postgres",
        )
        done, inexcusable = ended_sessions.restart_under_load(
            alias.name, server.restart, threads=8, wanted=300
        )
    assert inexcusable == []
    assert done >= 300


@pytest.mark.parametrize("idle_for", ["auto", "0.1"])
def test_djangos_test_cases_and_clients_work_unchanged(idle_for):
    environment = {
        **os.environ,
        "ENGINE_IDLE_FOR": idle_for,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
    }
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    command = [sys.executable, "-W", "error", "-m", "django", "test", "tests.postgres.engine_site"]
    run = subprocess.run(
        [*command, "--settings=tests.postgres.engine_site.settings", "--pattern=cases.py"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "OK" in run.stderr
    assert "Ran 9 tests" in run.stderr
