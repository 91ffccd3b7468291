from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conn_guard.sessions.session import LastStatement, Session, State, last_statement

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "text",
    [
        "LISTEN jobs",
        "listen jobs",
        '  \n\tListen "jobs";',
        "/* who: scheduler */ LISTEN jobs",
        "/* a /* nested */ comment */ LISTEN jobs",
        "-- a line\n--another\nLISTEN jobs",
        "/* a */-- b\n/* c */listen jobs",
        "BEGIN; LISTEN jobs; COMMIT",
        "LISTEN jobs; SELECT 1",
        "SELECT 1;/* then */ LISTEN jobs",
        "LISTEN/**/jobs",
        "SELECT '/*'; LISTEN jobs; SELECT '*/'",
    ],
)
def test_a_statement_that_listens_is_recognised(text):
    assert last_statement(text) is LastStatement.LISTEN


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "SELECT 1",
        "UNLISTEN jobs",
        "SELECT 'listen'",
        "SELECT listen FROM jobs",
        "listener_cleanup()",
        "/* LISTEN jobs */ SELECT 1",
        "-- LISTEN jobs\nSELECT 1",
        "/* never closed LISTEN jobs",
        "SELECT '/* conn_guard:holds-state */'",
    ],
)
def test_any_other_statement_tells_nothing(text):
    assert last_statement(text) is LastStatement.OTHER


@pytest.mark.parametrize(
    "text",
    [
        "/* conn_guard:holds-state */ SELECT 1",
        "/* route: tasks */ /* conn_guard:holds-state */ SELECT 1",
        "-- added by a wrapper\n/* conn_guard:holds-state */ SELECT 1",
    ],
)
def test_the_mark_of_the_engine_is_recognised(text):
    assert last_statement(text) is LastStatement.HOLDS_STATE


@given(st.text(alphabet="/*- \n;listenLISTEN'x", max_size=200))
def test_no_text_is_too_odd_to_read(text):
    assert last_statement(text) in LastStatement
    assert last_statement(f"LISTEN jobs;{text}") is LastStatement.LISTEN


def test_a_state_is_named_as_the_server_names_it():
    assert State.named("idle in transaction (aborted)") is State.IDLE_IN_TRANSACTION_ABORTED
    assert State.named("a word of PostgreSQL 25") is State.UNKNOWN
    assert State.named(None) is None


def test_time_in_a_state_is_on_the_servers_clock():
    session = Session(
        pid=1,
        backend_start=NOON,
        backend_type="client backend",
        user="app",
        database="shop",
        application_name="shop:12",
        application="shop",
        client=None,
        state=State.IDLE,
        state_change=NOON - timedelta(minutes=3),
        observed_at=NOON,
    )
    assert session.in_state_for == timedelta(minutes=3)
