"""A pooler between the reaper and the server: it is refused, and its sessions are spared."""

from __future__ import annotations

import tempfile

import pytest
from django.db.backends.postgresql.base import Database

from tests.support import programs
from tests.support.own_server import own_server
from tests.support.polling import until
from tests.support.reaping import reap

LOCKS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
LAST_WORDS = (
    "SELECT query, application_name FROM pg_stat_activity WHERE usename = 'app' AND pid <> ALL(%s)"
)


@pytest.fixture(scope="module")
def started(django_db_blocker):
    # A Unix socket for the application, so that an address tells the pooler's sessions from the
    # others.
    sockets = {"unix_socket_directories": tempfile.gettempdir()}
    with django_db_blocker.unblock(), own_server(settings=sockets) as server:
        yield server


@pytest.fixture
def pooler(server):
    """Return a function that puts a PgBouncer of some mode before the server."""
    opened = []

    def start(mode, **settings):
        address = {
            "HOST": server.server.host,
            "PORT": server.server.port,
            "USER": "app",
            "PASSWORD": "",
        }
        manager = programs.pgbouncer(address, mode, **settings)
        opened.append(manager)
        return manager.__enter__()

    yield start
    for manager in opened:
        manager.__exit__(None, None, None)


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_is_refused_before_anything_else_is_said(server, pooler, mode):
    session = server.session()
    arguments = server.rested(session)
    through = pooler(mode, server_reset_query="")
    with server.alias(**through.settings):
        run = reap(*arguments)
        assert reap(*arguments, "--dry-run").exit_code == 2
        assert reap(*arguments, "--every", "1m").exit_code == 2
    assert run.exit_code == 2
    assert (
        run.error
        == "own: a pooler stands between this alias and the server, so its sessions can't be told"
        " apart. Add an alias that leads straight to the server and name it with --database; or,"
        " where the pooler runs in session mode, write CONN_GUARD['POOLER'] = {'own':"
        " 'session'}."
    )
    assert (run.sessions, run.summaries) == ({}, {})
    # The last statement on the pooler's session is the check for a pooler; it has no name of ours,
    # or each reaper would spare it.
    assert server.ask(LAST_WORDS, [[session.pid]]) == [("SELECT pg_catalog.pg_backend_pid()", "")]
    assert server.ask(LOCKS) == []
    assert server.alive(session)


def test_a_pooler_in_transaction_mode_that_was_declared_as_such_is_refused(
    server, pooler, settings
):
    settings.CONN_GUARD = {"POOLER": {"own": "transaction"}}
    with server.alias(**pooler("transaction").settings):
        assert reap("--database", "own").exit_code == 2


@pytest.mark.parametrize("reset", ["DISCARD ALL", ""])
def test_a_pooler_in_session_mode_serves_where_the_project_says_so(server, pooler, settings, reset):
    settings.CONN_GUARD = {"POOLER": {"own": "session"}}
    through = pooler("session", server_reset_query=reset)
    for _ in range(2):
        session = server.session()
        with server.alias(**through.settings):
            run = reap(*server.rested(session))
            assert (run.exit_code, run.fate(session)) == (0, ("signalled", None))
        # The pooler keeps its session, which must keep neither our lock, our name nor our settings.
        until(lambda: server.ask(LOCKS) == [])
        assert "conn_guard:idle_reaper" not in {name for _, name in server.ask(LAST_WORDS, [[]])}
    client = server.session(host=through.host, port=through.port)
    assert client.execute("SHOW statement_timeout") == [("0",)]
    with server.alias():
        session = server.session()
        assert reap(*server.rested(session)).fate(session) == ("signalled", None)


def test_the_server_connections_of_a_pooler_are_spared_by_its_address(server, pooler):
    through = pooler("transaction")
    client = server.session(host=through.host, port=through.port)
    ((pooled,),) = client.execute("SELECT pg_backend_pid()")
    straight = server.session(host=tempfile.gettempdir(), port=server.server.port)
    behind = type("Behind", (), {"pid": pooled})
    with server.alias(HOST=tempfile.gettempdir()):
        arguments = server.rested(straight, behind)
        run = reap(*arguments, "--exclude-client", "127.0.0.1")
        assert run.fate(straight) == ("signalled", None)
        assert run.fate(behind) == ("spared", "excluded")
        assert (run.exit_code, server.alive(behind)) == (0, True)
        # Without it they look like the application's; a client at rest doesn't notice, because the
        # pooler opens another.
        assert reap(*arguments).fate(behind) == ("signalled", None)
    until(lambda: _answers(client))
    assert client.execute("SELECT pg_backend_pid()") != [(pooled,)]


def _answers(client):
    try:
        return client.execute("SELECT 1")
    except Database.OperationalError:
        return False
