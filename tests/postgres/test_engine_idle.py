"""The idle limit: an unused connection of a living thread is closed unless it holds state."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import django
import pytest
from django.db import InterfaceError, OperationalError, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created

from conn_guard import pin
from tests.support import programs
from tests.support.reaping import reap

LIMIT_S = 0.1
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _limit(settings):
    settings.CONN_GUARD = {"ENGINE_IDLE_FOR": LIMIT_S}


# Closed


def test_an_unused_connection_of_a_living_thread_is_closed_and_opened_again(guarded, worker):
    first = worker(guarded.pid)
    assert guarded.becomes(0)
    assert worker(guarded.pid) != first


def test_every_thread_of_an_executor_that_lives_on_gives_back(guarded):
    with ThreadPoolExecutor(6) as threads:
        together = threading.Barrier(6)
        assert len(set(threads.map(lambda _: (together.wait(30), guarded.pid())[1], range(6)))) == 6
        assert guarded.becomes(0)
        assert list(threads.map(lambda _: guarded.query(), range(12))) == [[(1,)]] * 12


def test_use_puts_it_off(guarded, worker, until):
    first = worker(guarded.pid)
    begun = time.monotonic()
    until(lambda: worker(guarded.pid) == first and time.monotonic() - begun > 4 * LIMIT_S)


def test_a_long_query_is_use(guarded, worker):
    assert worker(guarded.query, "SELECT pg_sleep(%s), pg_backend_pid()", [4 * LIMIT_S])[0][
        1
    ] == worker(guarded.pid)
    with guarded.wrapper.cursor() as cursor:
        for run, parameters in ((cursor.execute, [0.05]), (cursor.executemany, [[0.05]])):
            begun = time.monotonic()
            run("SELECT pg_sleep(%s)", parameters)
            assert guarded.wrapper.lease.used_at >= begun + 0.05, (
                "idle time counts from the end of a query"
            )


def test_a_copy_and_a_pools_slot_are_given_back(make_engine, worker):
    if django.VERSION < (5, 1) or not is_psycopg3:
        pytest.skip("Django's pool came with 5.1, for psycopg 3")
    alias = make_engine(options={"pool": {"min_size": 1, "max_size": 1, "timeout": 5}})
    worker(alias.query)
    assert alias.query() == [(1,)]
    alias.until(lambda: alias.wrapper.connection is None)
    assert worker(alias.query) == [(1,)]


def test_a_session_that_ended_meanwhile_is_let_go(guarded, worker, until):
    wrapper = worker(lambda: (guarded.query(), guarded.wrapper)[1])
    guarded.end_sessions()
    until(lambda: wrapper.connection is None)


@pytest.mark.parametrize(
    ("idle_for", "max_age", "seconds"),
    [
        ("auto", 0, 60),
        ("auto", 30, 30),
        ("auto", 0.5, 0.5),
        ("auto", None, math.inf),
        (timedelta(minutes=2), None, 120),
        (5, 60, 5),
        (None, 0, math.inf),
        (None, 60, math.inf),
    ],
)
def test_the_limit_follows_the_settings(make_engine, settings, idle_for, max_age, seconds):
    settings.CONN_GUARD = {"ENGINE_IDLE_FOR": idle_for}
    alias = make_engine(CONN_MAX_AGE=max_age)
    alias.query()
    assert alias.wrapper.lease.idle_for_s == seconds


def test_what_django_does_at_connect_is_not_state(make_engine, worker):
    options = {"assume_role": "pg_monitor", "isolation_level": 3}
    alias = make_engine(CONN_MAX_AGE=None, TIME_ZONE="Europe/Berlin", options=options)
    assert worker(alias.query, "SELECT current_user::text, current_setting('TimeZone')") == [
        ("pg_monitor", "Europe/Berlin")
    ]
    assert alias.becomes(0)


def test_what_the_driver_sets_at_connect_is_not_state(make_engine, worker):
    """psycopg2 sets a DateStyle that it can read."""
    alias = make_engine(options={"options": "-c datestyle=German"})
    worker(alias.query)
    assert alias.becomes(0)


def test_what_pgbouncer_sets_at_connect_is_not_state(make_engine, worker, until):
    address = connections.settings["default"]
    with programs.pgbouncer(address, "session") as pooler:
        alias = make_engine(**pooler.settings)

        def wrapper():
            alias.query()
            return alias.wrapper

        opened = worker(wrapper)
        assert until(lambda: opened.connection is None)
        worker(alias.query, "SET application_name = 'another'")
        # Its name in the list of sessions is another one, so it is found by its last statement.
        marked = "SELECT 1 FROM pg_stat_activity WHERE query LIKE %s AND application_name = %s"
        assert until(lambda: alias.ask(marked, ["%conn_guard:holds-state%", "another"]))
        worker(lambda: alias.wrapper.close())


def test_a_transaction_that_is_over_is_not_state(make_engine, worker):
    alias = make_engine(CONN_MAX_AGE=None, options={"isolation_level": 3})

    @transaction.atomic(using=alias.name)
    def transact():
        alias.query("SET LOCAL statement_timeout = '50s'")
        alias.query("SELECT pg_advisory_xact_lock(4711)")

    worker(transact)
    assert alias.becomes(0)


def test_what_every_connect_does_is_not_state(guarded, worker):
    def receive(connection, **kwargs):
        if connection.alias == guarded.name:
            with connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = '50s'")

    connection_created.connect(receive)
    worker(guarded.query)
    assert guarded.becomes(0)
    assert worker(guarded.query, "SHOW statement_timeout") == [("50s",)]
    connection_created.disconnect(receive)


# Spared


def test_a_connection_in_an_atomic_block(guarded, reclaimer_passes):
    with transaction.atomic(using=guarded.name):
        pid = guarded.pid()
        reclaimer_passes()
        assert guarded.pid() == pid


def test_a_connection_in_a_raw_transaction(guarded, reclaimer_passes):
    guarded.query("BEGIN")
    reclaimer_passes()
    assert [state for _, state, _ in guarded.sessions()] == ["idle in transaction"]


def test_a_connection_with_autocommit_off_between_two_transactions(
    guarded, reclaimer_passes, table
):
    insert = f"INSERT INTO {table} (n) VALUES (%s)"
    guarded.wrapper.set_autocommit(False)
    guarded.query(insert, [1])
    guarded.wrapper.commit()
    reclaimer_passes()
    guarded.query(insert, [2])
    guarded.wrapper.rollback()
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]


def test_a_connection_whose_settings_have_autocommit_off(make_engine, reclaimer_passes):
    alias = make_engine(CONN_MAX_AGE=None, AUTOCOMMIT=False)
    pid = alias.pid()
    alias.wrapper.commit()
    reclaimer_passes()
    assert alias.pid() == pid
    alias.wrapper.commit()
    alias.wrapper.set_autocommit(True)
    reclaimer_passes()
    assert alias.pid() == pid


def test_a_connection_that_is_about_to_get_a_cursor(guarded, reclaimer_passes, monkeypatch):
    create_cursor = guarded.wrapper.create_cursor

    def create_late(name=None):
        reclaimer_passes()
        return create_cursor(name)

    pid = guarded.pid()
    monkeypatch.setattr(guarded.wrapper, "create_cursor", create_late)
    assert guarded.pid() == pid


def test_a_connection_that_is_used_while_the_reclaimer_checks_it(guarded):
    class SlowLock:
        """A lock whose wrapper is used by its thread just before the reclaimer gets it."""

        def acquire(self, *, blocking):
            guarded.wrapper.lease.used_at = now
            return guard.acquire(blocking=blocking)

        def release(self):
            guard.release()

        __enter__, __exit__ = guarded.wrapper.lock.__enter__, guarded.wrapper.lock.__exit__

    pid = guarded.pid()
    guard, guarded.wrapper.lock = guarded.wrapper.lock, SlowLock()
    now = time.monotonic() + 10 * LIMIT_S
    guarded.wrapper.check_due(now)
    guarded.wrapper.lock = guard
    assert guarded.pid() == pid


def test_a_connection_with_a_cursor_that_moved_to_another_session(guarded, reclaimer_passes):
    with guarded.wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        guarded.end_sessions()
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchall()
        reclaimer_passes()
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchall() == pid


def test_a_connection_with_an_open_cursor(guarded, reclaimer_passes):
    with guarded.wrapper.cursor() as cursor, guarded.wrapper.cursor() as later:
        later.execute("SELECT pg_backend_pid()")
        pid = later.fetchall()
        later.close()
        reclaimer_passes()
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchall() == pid


def test_a_connection_with_a_server_side_cursor_half_read(guarded, reclaimer_passes):
    with guarded.wrapper.chunked_cursor() as cursor:
        cursor.execute("SELECT * FROM generate_series(1, 5000)")
        assert cursor.fetchmany(2) == [(1,), (2,)]
        reclaimer_passes()
        assert cursor.fetchmany(2) == [(3,), (4,)]


def test_a_connection_that_is_lent(guarded, reclaimer_passes):
    wrapper = guarded.wrapper
    wrapper.inc_thread_sharing()
    pid = guarded.pid()
    reclaimer_passes()
    assert guarded.sessions() == [(pid, "idle", "SELECT pg_backend_pid()")], "not even asked"
    wrapper.dec_thread_sharing()


@pytest.mark.skipif(not is_psycopg3, reason="psycopg 3 has a lock for each connection")
def test_a_connection_in_use_past_django(guarded, reclaimer_passes):
    guarded.pid()
    with guarded.wrapper.connection.lock:
        reclaimer_passes()
        assert len(guarded.sessions()) == 1
    assert guarded.becomes(0)


# Kept and marked: the session holds state

STATES = {
    "listening": "LISTEN jobs",
    "a lock": "SELECT pg_advisory_lock(4711)",
    "a temporary table": "CREATE TEMP TABLE t (n int)",
    "another role": "SET ROLE pg_monitor",
    "another user": "SET SESSION AUTHORIZATION pg_monitor",
    "a setting": "SET statement_timeout = '50s'",
    "a setting of the application's own": "SELECT set_config('app.tenant', '5', false)",
    "a prepared statement": "PREPARE p AS SELECT 1",
    "a cursor that is held": "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "a setting made out of sight": (
        "DO $$ BEGIN EXECUTE 'SET statement_time' || 'out = 50000'; END $$"
    ),
    "a lock taken out of sight": (
        "DO $$ BEGIN EXECUTE 'SELECT pg_advisory_' || 'lock(4711)'; END $$"
    ),
}
MARK = "/* conn_guard:holds-state */ SELECT 1"


@pytest.mark.parametrize("statement", STATES.values(), ids=STATES)
def test_a_session_that_holds_state_is_kept_and_says_so(
    guarded, worker, reclaimer_passes, until, statement
):
    worker(guarded.query, statement)
    ((pid, _, _),) = guarded.sessions()
    until(lambda: guarded.sessions() == [(pid, "idle", MARK)])
    reclaimer_passes()
    assert guarded.pids() == {pid}
    run = reap("--application-name", guarded.name, "--idle-for", "0.01s", "--dry-run")
    assert run.sessions[pid]["action"] == "spared"
    assert run.sessions[pid]["reason"] in ("holds_state", "advisory_lock")


def test_a_session_whose_state_was_found_gives_the_caller_the_error(guarded, worker, until):
    worker(guarded.query, STATES["a lock taken out of sight"])
    until(lambda: [statement for _, _, statement in guarded.sessions()] == [MARK])
    guarded.end_sessions()
    with pytest.raises((OperationalError, InterfaceError)):
        worker(guarded.query)


@pytest.mark.parametrize(
    ("make", "end"),
    [
        ("SELECT pg_advisory_lock(4711)", "SELECT pg_advisory_unlock(4711)"),
        ("LISTEN jobs", "UNLISTEN *"),
        ("CREATE TEMP TABLE t (n int)", "DROP TABLE t"),
        ("SET ROLE pg_monitor", "RESET ROLE"),
        ("SET statement_timeout = 50000", "RESET statement_timeout"),
    ],
)
def test_a_session_whose_state_is_gone_is_closed(guarded, worker, make, end):
    worker(guarded.query, make)
    worker(guarded.query, end)
    assert guarded.becomes(0)


def test_a_session_is_asked_once_in_a_period_of_rest_and_again_in_the_next(
    guarded, worker, reclaimer_passes, until, ask
):
    def marked_at():
        statement = (
            "SELECT state_change FROM pg_stat_activity WHERE application_name = %s AND query = %s"
        )
        return ask(statement, [guarded.name, MARK])

    worker(guarded.query, "LISTEN jobs")
    first = until(marked_at)
    reclaimer_passes()
    assert marked_at() == first
    worker(guarded.query)
    until(lambda: marked_at() and marked_at() != first)
    worker(guarded.query, "UNLISTEN jobs")
    assert guarded.becomes(0)


def test_a_pinned_connection_is_kept_and_marked(guarded, reclaimer_passes, until):
    with pin(guarded.name):
        pid = guarded.pid()
        until(lambda: guarded.sessions() == [(pid, "idle", MARK)])
        reclaimer_passes()
        assert guarded.pid() == pid
    assert guarded.becomes(0)


def test_a_question_that_fails_keeps_the_session(guarded, reclaimer_passes, monkeypatch):
    monkeypatch.setattr("conn_guard.engine.state.HELD_STATE", "SELECT 'never' WHERE 1 / 0 = 1")
    pid = guarded.pid()
    last_statement = guarded.sessions()[0][2]
    guarded.until(lambda: guarded.sessions()[0][2] != last_statement)
    assert guarded.pids() == {pid}


def test_behind_a_pooler_that_shares_sessions_nothing_is_asked(guarded, worker, settings):
    settings.CONN_GUARD = {"ENGINE_IDLE_FOR": LIMIT_S, "POOLER": {guarded.name: "transaction"}}
    worker(guarded.query, "LISTEN jobs")
    assert guarded.becomes(0)


# Under load


LONG = pytest.mark.skipif(
    os.environ.get("CONN_GUARD_REQUIRE") != "all", reason="takes a minute: CONN_GUARD_REQUIRE=all"
)


@pytest.mark.parametrize("times", [500, pytest.param(10_000, marks=LONG)])
def test_threads_that_rest_and_work_lose_nothing(guarded, settings, table, ask, times):
    """The reclaimer closes idle connections, and never one that its thread begins to use."""
    settings.CONN_GUARD = {"ENGINE_IDLE_FOR": 0.05}
    threads = 8
    ask(f"INSERT INTO {table} (id, n) SELECT g, 0 FROM generate_series(0, {threads}) AS g")
    pids: set[int] = set()

    def work(thread):
        for turn in range(times):
            guarded.query(f"UPDATE {table} SET n = n + 1 WHERE id = %s", [thread])
            if turn % 100 == 50:
                with transaction.atomic(using=guarded.name):
                    ((n,),) = guarded.query(f"SELECT n FROM {table} WHERE id = 0 FOR UPDATE")
                    guarded.query(f"UPDATE {table} SET n = %s WHERE id = 0", [n + 1])
            if turn % 100 == 75:
                pids.add(guarded.pid())
                # About as long as the limit, so that the thread and the reclaimer win in turn.
                threading.Event().wait(0.04 + 0.01 * (turn // 100 % 5))

    # After a deadlock the pool would wait for its threads without end. So the process shows all
    # stacks and exits.
    faulthandler.dump_traceback_later(300, exit=True, file=sys.__stderr__)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(1, threads + 1)))
    finally:
        faulthandler.cancel_dump_traceback_later()
    counted = ask(f"SELECT n FROM {table} ORDER BY id")
    assert counted == [(threads * len(range(50, times, 100)),)] + [(times,)] * threads
    assert len(pids) > threads, "some were closed meanwhile"
