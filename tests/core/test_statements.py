"""What a statement leaves behind in its session, told by its text."""

from __future__ import annotations

import pytest

from conn_guard.engine.statements import Leaves, read


@pytest.mark.parametrize(
    "sql",
    [
        "SET ROLE low",
        "set search_path = tenant",
        "SET SESSION statement_timeout = 5",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET TIME ZONE 'UTC'",
        "SELECT set_config('search_path', 'a', false)",
        "LISTEN jobs",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock_shared(1, 2)",
        "CREATE TEMP TABLE t (n int)",
        "create temporary view v as select 1",
        "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
        "CREATE LOCAL TEMPORARY SEQUENCE s",
        "CREATE TABLE IF NOT EXISTS pg_temp.t (n int)",
        "SELECT 1 INTO TEMP t",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "DECLARE c NO SCROLL CURSOR\nWITH  HOLD FOR SELECT 1",
        "PREPARE p AS SELECT 1",
        "SELECT 1; SET ROLE low",
        "  -- why\n SET ROLE low",
        "/* why */ /* and\nwhy */ LISTEN jobs",
    ],
)
def test_a_statement_that_makes_state(sql):
    assert read(sql) is Leaves.STATE


@pytest.mark.parametrize(
    "sql",
    [
        "SET app.tenant = '5'",
        'SET SESSION "app".tenant = 5',
        "SELECT set_config('app.tenant', %s, false)",
        "SELECT set_config(%s, %s, false)",
        "SELECT SET_CONFIG ( 'app.tenant', '5', %s)",
        "SET SESSION AUTHORIZATION low",
    ],
)
def test_a_statement_that_makes_state_of_which_the_server_tells_nothing(sql):
    assert read(sql) is Leaves.UNASKABLE_STATE


@pytest.mark.parametrize(
    "sql", ["BEGIN", "begin isolation level serializable", "START TRANSACTION", "SELECT 1; BEGIN"]
)
def test_a_statement_that_begins_a_transaction(sql):
    assert read(sql) is Leaves.TRANSACTION


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "SELECT 1",
        "SET LOCAL ROLE low",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "SELECT set_config('app.tenant', %s, true)",
        "SELECT pg_advisory_xact_lock(1), pg_advisory_unlock(1)",
        "UPDATE t SET n = 1",
        "UPDATE offset SET role = 'low'",
        "CREATE TABLE temperature (n int)",
        "SELECT * FROM pg_temp.t",
        "INSERT INTO template VALUES (1)",
        "DECLARE c CURSOR FOR SELECT 1",
        "PREPARE TRANSACTION 'two'",
        "SELECT * FROM listen",
        "SELECT settings FROM t; SELECT 2",
    ],
)
def test_a_statement_that_leaves_nothing(sql):
    assert read(sql) is Leaves.NOTHING


def test_a_script_is_taken_to_make_state():
    assert read("SELECT 1;" * 100) is Leaves.STATE


def test_a_long_text_is_read_in_no_time():
    """A bulk insert must not wait for the engine: this would take minutes if a pattern went back
    and forth.
    """
    assert (
        read("INSERT INTO t VALUES " + "(' /* -- temp set_config(a, true) ', 1), " * 40_000)
        is Leaves.NOTHING
    )
    assert read("INSERT INTO t VALUES " + "(' ; /* ', 1), " * 40_000) is Leaves.STATE
