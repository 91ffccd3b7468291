"""A session that ended while idle is replaced, unless a new session would lose something."""

from __future__ import annotations

import contextlib
import time

import django
import pytest
from django.db import (
    Error,
    OperationalError,
    transaction,
)
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError

from conn_guard import pin
from tests.support.engine import BROKEN

# Replaced


def test_a_session_that_ended_while_idle_is_replaced(alias):
    first = alias.pid()
    for _ in range(3):
        alias.end_sessions()
        assert alias.pid() != first


def test_a_cursor_that_rested_between_two_statements_goes_on(alias):
    with alias.wrapper.cursor() as cursor:
        for _ in range(3):
            cursor.execute("SELECT %s::int", [5])
            assert cursor.fetchall() == [(5,)]
            alias.end_sessions()
        cursor.executemany("SELECT %s::int", [[1], [2]])
    with alias.wrapper.cursor() as unused, alias.wrapper.cursor() as other:
        other.execute("SELECT 1")
        alias.end_sessions()
        other.execute("SELECT 1")
        # A cursor that was used a moment ago must not run on the ended session either.
        unused.lease.used_at = time.monotonic()
        unused.execute("SELECT 2")
        assert unused.fetchall() == [(2,)]


def test_a_debugging_cursor_goes_on_as_well(guarded):
    guarded.wrapper.force_debug_cursor = True
    with guarded.wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        guarded.end_sessions()
        cursor.execute("SELECT 2")
        assert cursor.fetchall() == [(2,)]
    assert [query["sql"] for query in guarded.wrapper.queries_log] == ["SELECT 1", "SELECT 2"]


def test_a_server_side_cursor_begins_on_a_living_session(alias):
    alias.pid()
    alias.end_sessions()
    with alias.wrapper.chunked_cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_an_atomic_block_begins_on_a_living_session(guarded, table):
    guarded.pid()
    guarded.end_sessions()
    with transaction.atomic(using=guarded.name):
        guarded.query(f"INSERT INTO {table} (n) VALUES (1)")
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]


def test_a_session_that_died_in_use_is_replaced_after_its_error(guarded):
    guarded.pid()
    with pytest.raises(BROKEN):
        guarded.query("SELECT pg_terminate_backend(pg_backend_pid())")
    assert guarded.query() == [(1,)]
    with guarded.wrapper.cursor() as cursor:
        with pytest.raises(BROKEN):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_without_autocommit_in_the_settings_a_session_is_replaced_between_transactions(
    make_engine, table
):
    alias = make_engine(CONN_MAX_AGE=None, AUTOCOMMIT=False)
    alias.query(f"INSERT INTO {table} (n) VALUES (1)")
    alias.wrapper.commit()
    alias.end_sessions()
    alias.query(f"INSERT INTO {table} (n) VALUES (2)")
    alias.wrapper.rollback()
    assert alias.query(f"SELECT n FROM {table}") == [(1,)]


def test_connections_of_several_aliases_are_replaced_each_by_its_own(make_engine):
    one, two = make_engine(CONN_MAX_AGE=None), make_engine(CONN_MAX_AGE=None)
    kept = two.pid(), one.pid()
    one.end_sessions()
    assert one.pid() != kept[1]
    assert two.pid() == kept[0]


def test_a_failing_reconnect_raises_in_the_caller(guarded):
    guarded.pid()
    guarded.end_sessions()
    guarded.wrapper.settings_dict = {**guarded.wrapper.settings_dict, "PORT": "1"}
    with pytest.raises(OperationalError):
        guarded.query()


# Not replaced, because something would be lost


@pytest.mark.parametrize(
    "statement",
    [
        "SET ROLE pg_monitor",
        "SELECT pg_advisory_lock(4711)",
        "LISTEN jobs",
        "CREATE TEMP TABLE t (n int)",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT set_config('app.tenant', '5', false)",
    ],
)
def test_a_session_that_held_state_gives_the_caller_the_error(guarded, statement):
    guarded.query(statement)
    guarded.end_sessions()
    for _ in range(2):
        with pytest.raises(BROKEN):
            guarded.query()
    guarded.wrapper.close()
    assert guarded.query() == [(1,)]


@pytest.mark.skipif(not is_psycopg3, reason="psycopg 3's own objects")
def test_state_is_seen_in_a_statement_of_any_type(guarded):
    from psycopg import sql

    for statement in (
        sql.SQL("SET ROLE {}").format(sql.Identifier("pg_monitor")),
        b"SET ROLE pg_monitor",
    ):
        guarded.query(statement)
        guarded.end_sessions()
        with pytest.raises(BROKEN):
            guarded.query()
        guarded.wrapper.close()


def test_state_is_seen_in_a_called_function(guarded):
    with guarded.wrapper.cursor() as cursor:
        cursor.callproc("pg_advisory_lock", [4711])
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query()


def test_state_is_seen_in_many_statements(guarded):
    with guarded.wrapper.cursor() as cursor:
        cursor.executemany("SELECT set_config('app.tenant', %s, false)", [["1"], ["2"]])
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query()


def test_state_that_every_connect_makes_does_not_prevent_replacement(guarded):
    def receive(connection, **kwargs):
        if connection.alias == guarded.name:
            with connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = '50s'")

    connection_created.connect(receive)
    guarded.pid()
    guarded.end_sessions()
    assert guarded.query("SHOW statement_timeout") == [("50s",)]
    connection_created.disconnect(receive)


def test_a_pinned_connection_gives_the_caller_the_error(guarded):
    with pin(guarded.name):
        guarded.pid()
        guarded.end_sessions()
        with pytest.raises(BROKEN):
            guarded.query()
    assert guarded.query() == [(1,)]


def test_without_autocommit_in_its_settings_a_transaction_is_not_continued_on_another_session(
    make_engine, table
):
    alias = make_engine(CONN_MAX_AGE=None, AUTOCOMMIT=False)
    insert = f"INSERT INTO {table} (n) VALUES (%s)"
    alias.query()
    alias.wrapper.commit()
    with alias.wrapper.cursor() as cursor:
        # The statements follow each other so fast that only the first would be checked.
        cursor.execute(insert, [1])
        with pytest.raises(BROKEN):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    for _ in range(2):
        with pytest.raises(BROKEN):
            alias.query(insert, [2])
    alias.wrapper.close()
    assert alias.query(f"SELECT n FROM {table}") == []


def test_inside_atomic_the_error_reaches_the_caller_and_nothing_is_written(guarded, table):
    insert = f"INSERT INTO {table} (n) VALUES (%s)"

    @transaction.atomic(using=guarded.name)
    def write():
        guarded.query(insert, [1])
        guarded.end_sessions()
        guarded.query(insert, [2])

    with pytest.raises(BROKEN):
        write()
    assert guarded.query(f"SELECT n FROM {table}") == []
    guarded.query(insert, [3])
    assert guarded.query(f"SELECT n FROM {table}") == [(3,)]


def test_inside_atomic_a_swallowed_error_does_not_write_the_rest(guarded, table):
    insert = f"INSERT INTO {table} (n) VALUES (%s)"
    with (
        contextlib.suppress(*BROKEN, TransactionManagementError),
        transaction.atomic(using=guarded.name),
    ):
        guarded.query(insert, [1])
        guarded.end_sessions()
        for number in (2, 3):
            with contextlib.suppress(*BROKEN, TransactionManagementError):
                guarded.query(insert, [number])
    guarded.wrapper.close_if_unusable_or_obsolete()
    assert guarded.query(f"SELECT n FROM {table}") == []


def test_without_autocommit_the_error_reaches_the_caller_and_nothing_is_written(guarded, table):
    insert = f"INSERT INTO {table} (n) VALUES (%s)"
    guarded.wrapper.set_autocommit(False)
    guarded.query(insert, [1])
    guarded.wrapper.commit()
    guarded.query(insert, [2])
    guarded.end_sessions()
    for _ in range(2):
        with pytest.raises(BROKEN):
            guarded.query(insert, [3])
    guarded.wrapper.close()
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]


def test_with_autocommit_switched_off_a_session_is_not_replaced_between_transactions(
    guarded, table
):
    """A new session would have autocommit on and commit statements that may be rolled back."""
    guarded.wrapper.set_autocommit(False)
    guarded.query(f"INSERT INTO {table} (n) VALUES (1)")
    guarded.wrapper.commit()
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query(f"INSERT INTO {table} (n) VALUES (2)")
    guarded.wrapper.close()
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]


def test_autocommit_is_switched_back_on_though_the_session_has_ended(guarded, table):
    guarded.wrapper.set_autocommit(False)
    guarded.query(f"INSERT INTO {table} (n) VALUES (1)")
    guarded.wrapper.commit()
    guarded.end_sessions()
    guarded.wrapper.set_autocommit(True)
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]
    assert guarded.wrapper.get_autocommit()


def test_a_commit_stands_though_the_session_ended_right_after_it(guarded, table, monkeypatch):
    told = []
    guarded.query()
    commit = guarded.wrapper.commit
    monkeypatch.setattr(guarded.wrapper, "commit", lambda: (commit(), guarded.end_sessions()))
    with transaction.atomic(using=guarded.name):
        guarded.query(f"INSERT INTO {table} (n) VALUES (1)")
        transaction.on_commit(lambda: told.append(1), using=guarded.name)
    assert told == [1]
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]


def test_a_session_that_held_state_then_gives_the_caller_the_error_and_breaks_no_thread(guarded):
    guarded.query("LISTEN jobs")
    guarded.wrapper.set_autocommit(False)
    guarded.end_sessions()
    guarded.wrapper.set_autocommit(True)
    for _ in range(2):
        with pytest.raises(BROKEN), transaction.atomic(using=guarded.name):
            guarded.query()
        assert not guarded.wrapper.in_atomic_block
    guarded.wrapper.close()
    with transaction.atomic(using=guarded.name):
        assert guarded.query() == [(1,)]


def test_autocommit_is_not_switched_back_on_silently_where_a_transaction_was_lost(guarded, table):
    guarded.wrapper.set_autocommit(False)
    guarded.query(f"INSERT INTO {table} (n) VALUES (1)")
    guarded.end_sessions()
    with pytest.raises(Error):
        guarded.wrapper.set_autocommit(True)


@pytest.mark.parametrize("moment", ["idle", "in use"])
def test_a_raw_transaction_is_not_continued_on_another_session(guarded, table, moment):
    insert = f"INSERT INTO {table} (n) VALUES (%s)"
    guarded.query("BEGIN")
    guarded.query(insert, [1])
    if moment == "idle":
        guarded.end_sessions()
    else:
        with pytest.raises(BROKEN):
            guarded.query("SELECT pg_terminate_backend(pg_backend_pid())")
    for _ in range(2):
        with pytest.raises(BROKEN):
            guarded.query(insert, [2])
    guarded.wrapper.close()
    assert guarded.query(f"SELECT n FROM {table}") == []


def test_a_server_side_cursor_that_lost_its_session_fails_and_the_next_query_does_not(guarded):
    cursor = guarded.wrapper.chunked_cursor()
    cursor.execute("SELECT * FROM generate_series(1, 5000)")
    assert cursor.fetchmany(2) == [(1,), (2,)]
    guarded.end_sessions()
    assert guarded.query() == [(1,)]
    with pytest.raises(BROKEN):
        cursor.fetchmany(4900)
    with pytest.raises(django.db.Error):
        cursor.execute("SELECT 1")
    with contextlib.suppress(*BROKEN):
        cursor.close()


def test_a_connection_that_its_owner_closed_stays_closed_for_its_cursors(guarded):
    cursor = guarded.wrapper.cursor()
    cursor.execute("SELECT 1")
    guarded.wrapper.close()
    guarded.query()
    with pytest.raises(BROKEN):
        cursor.execute("SELECT 1")
