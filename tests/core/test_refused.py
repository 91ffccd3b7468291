"""The advice for a login that failed, by what is known of the server and the role."""

from __future__ import annotations

import pytest

from conn_guard.sessions.refused import LIMIT, NO_SUPERUSER, RESERVE, advice

RESERVED = (
    "FATAL: remaining connection slots are reserved for roles with privileges of the"
    ' "pg_use_reserved_connections" role'
)
UNRESERVED = "FATAL: remaining connection slots are reserved for roles with the SUPERUSER attribute"
REFUSED = "connection refused"


@pytest.mark.parametrize("said", [RESERVED, UNRESERVED])
def test_a_server_without_slots_gets_what_helps_at_once_before_what_prevents_it(said):
    assert advice(said, roles=["shop"], aliases=[], version_num=None, is_superuser=None) == (
        "Every slot is taken. Now: run idle_reaper --user shop with the superuser's DATABASE_URL;"
        " or kill -TERM one backend that ps shows as idle on the database's host; or restart one"
        f" worker of the application. To prevent it: {RESERVE}. More: docs/how-to/no-slot-left.md"
    )


def test_an_unknown_reason_gets_the_settings_to_check_first():
    text = advice(REFUSED, roles=["shop"], aliases=[], version_num=None, is_superuser=None)
    assert text.startswith(
        "Check HOST, PORT, USER and PASSWORD. If every slot is taken, now: run idle_reaper --user"
    )


def test_another_alias_of_the_server_is_named_first():
    text = advice(
        RESERVED, roles=["Shop 1"], aliases=["bo ss"], version_num=None, is_superuser=None
    )
    assert "Now: run idle_reaper --database 'bo ss' --user 'Shop 1' --any-database; or run" in text


def test_each_role_whose_sessions_were_to_be_judged_is_named():
    text = advice(
        RESERVED, roles=["shop", "*"], aliases=["boss"], version_num=None, is_superuser=None
    )
    assert "run idle_reaper --database boss --user shop --user '*' --any-database; or" in text
    assert "run idle_reaper --user shop --user '*' with the superuser's" in text


@pytest.mark.parametrize(
    ("said", "version_num", "is_superuser", "cure"),
    [
        (REFUSED, None, None, f"{NO_SUPERUSER}; from PostgreSQL 16 on, {RESERVE}; on 14 and 15"),
        (RESERVED, None, None, RESERVE),
        (REFUSED, 150000, False, LIMIT),
        (REFUSED, 160000, False, RESERVE),
        (REFUSED, 180000, True, NO_SUPERUSER),
    ],
)
def test_the_cure_is_that_of_the_servers_version_and_role(said, version_num, is_superuser, cure):
    text = advice(said, roles=["a"], aliases=[], version_num=version_num, is_superuser=is_superuser)
    assert f" To prevent it: {cure}" in text
    assert ("the superuser's DATABASE_URL" in text) is not bool(is_superuser)
