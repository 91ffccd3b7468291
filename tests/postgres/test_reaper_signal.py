"""The statement that signals one session, on real sessions."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import DataError, transaction

from conn_guard.sessions.login import OwnSession
from conn_guard.sessions.policy import Policy, Verdict, judge
from conn_guard.sessions.server import InTransactionError, Server
from conn_guard.sessions.session import State
from tests.polling import until
from tests.postgres.reaping import RawClient, reap

# With transaction=False a test runs inside an atomic block, where the reaper refuses to run.
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def server():
    server = Server(OwnSession("default"))
    yield server
    server.close()


@pytest.fixture
def listed(server, application_name):
    """Return a function that gives the test's only session as the reaper lists it."""

    def find():
        (session,) = (
            each for each in server.list_sessions() if each.application_name == application_name
        )
        return session

    return find


def test_a_session_that_moved_since_listed_is_spared(session_factory, server, listed, alive):
    session = session_factory()
    before = listed()
    session.execute("SELECT 1")
    assert server.signal(before) is False
    assert alive(session)
    assert server.signal(listed()) is True
    until(lambda: not alive(session))


def test_a_session_that_wakes_between_listing_and_signal_is_reported_as_moved_on(
    session_factory, rested, alive, monkeypatch
):
    one, two = session_factory(), session_factory()
    list_sessions = Server.list_sessions

    def and_then_wake(self):
        sessions = list_sessions(self)
        one.execute("SELECT 'awake'")
        return sessions

    arguments = rested()
    monkeypatch.setattr(Server, "list_sessions", and_then_wake)
    run = reap(*arguments)
    assert run.fate(one) == ("spared", "moved_on")
    assert run.fate(two) == ("signalled", None)
    assert (run.summary["candidates"], run.summary["spared"]) == (2, {"moved_on": 1})
    assert alive(one)


def test_a_pid_that_was_reused_is_spared(session_factory, server, listed, alive):
    session = session_factory()
    now = listed()
    # The session that had the pid before started earlier.
    before = replace(now, backend_start=now.backend_start - timedelta(microseconds=1))
    assert server.signal(before) is False
    assert alive(session)


def test_a_transaction_that_began_unseen_is_spared(session_factory, server, listed, alive):
    session = session_factory()
    session.execute("BEGIN")
    claimed = replace(listed(), state=listed().state.IDLE)
    assert server.signal(claimed) is False
    assert alive(session)


def test_a_session_that_still_sends_its_answer_is_spared(
    address, application_name, ask, server, listed, alive
):
    """The state is idle as soon as the answer is formed; the wait event shows that it is sent."""
    client = _sending(address, application_name, ask)
    try:
        session = listed()
        assert (session.state, session.waits_for_client) == (State.IDLE, False)
        policy = Policy(idle_for=timedelta(0), login_role=session.user, database=session.database)
        assert judge(session, policy) is Verdict.ACTIVE
        assert server.signal(session) is False
        assert alive(client)
    finally:
        client.close()


def _sending(address, application_name, ask):
    """Return a client that reads nothing, whose session is idle and still sends its answer."""
    for _ in range(8):
        # An answer that fits into the buffers is soon idle and a longer one stays active: find the
        # size in between.
        fits, too_long = 0, 160_000
        while too_long - fits > 1:
            rows = (fits + too_long) // 2
            client = RawClient(**address, application_name=application_name, receive_buffer=4096)
            client.send(f"SELECT repeat('x', 90) FROM generate_series(1, {rows})")
            seen = until(lambda pid=client.pid: _settled(ask, pid))
            if seen == ("idle", "ClientWrite"):
                return client
            client.close()
            fits, too_long = (rows, too_long) if seen[0] == "idle" else (fits, rows)
    return pytest.fail("no answer was of the size at which a session is idle and still sends")


def _settled(ask, pid):
    rows = ask(
        "SELECT state, wait_event FROM pg_stat_activity WHERE pid = %s AND query <> ''", [pid]
    )
    return rows[0] if rows and rows[0][1] else None


def test_each_session_is_checked_again_after_the_one_before_was_signalled(
    session_factory, server, application_name, alive
):
    """A session that wakes between two signals is spared: each has a transaction of its own."""
    sessions = {session.pid: session for session in (session_factory(), session_factory())}
    first, second = (
        each for each in server.list_sessions() if each.application_name == application_name
    )
    assert server.signal(first) is True
    sessions[second.pid].execute("SELECT 'awake'")
    assert server.signal(second) is False
    assert alive(sessions[second.pid])


def test_a_refusal_is_the_error_of_its_session_alone(session_factory, server, application_name):
    for _ in range(3):
        session_factory()
    first, second, third = (
        each for each in server.list_sessions() if each.application_name == application_name
    )
    assert server.signal(first) is True
    # A pid beyond int is an error where a superuser's session would be one.
    with pytest.raises(DataError):
        server.signal(replace(second, pid=2**40))
    assert server.signal(third) is True


def test_a_session_that_has_gone_is_no_failure(session_factory, server, listed, alive):
    session = session_factory()
    gone = listed()
    session.close()
    until(lambda: not alive(session))
    assert server.signal(gone) is False


def test_a_signal_refuses_to_be_sent_inside_a_transaction(session_factory, server, listed, alive):
    session = session_factory()
    server.session.connection.set_autocommit(False)
    with pytest.raises(InTransactionError):
        server.signal(listed())
    assert alive(session)


def test_the_reaper_refuses_to_run_inside_an_atomic_block(session_factory, rested, alive):
    session = session_factory()
    arguments = rested()
    with transaction.atomic():
        run = reap(*arguments)
    assert run.exit_code == 2
    assert "inside transaction.atomic()" in run.error
    assert run.sessions == {}
    assert alive(session)
