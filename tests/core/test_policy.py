from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conn_guard.sessions.policy import Policy, Verdict, judge, keep_recent
from conn_guard.sessions.session import LastStatement, State
from tests.support.rows import hidden, session

MINUTE = timedelta(minutes=1)
POLICY = Policy(
    idle_for=10 * MINUTE,
    login_role="shop",
    database="shop",
    protected_applications=("psql*", "pg_*"),
    excluded_users=("billing",),
    excluded_applications=("shop:worker",),
    excluded_clients=(ip_network("10.9.0.0/16"),),
)
TRANSACTIONS = replace(POLICY, idle_in_transaction_for=2 * MINUTE)
NAMED = replace(POLICY, users=("dba",))


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (session(), Verdict.REAP),
        (session(idle_for=10 * MINUTE), Verdict.REAP),
        (session(client=None), Verdict.REAP),
        (session(is_superuser=True), Verdict.REAP),
        (session(is_self=True), Verdict.SELF),
        (session(application_name="conn_guard:idle_reaper"), Verdict.REAPER),
        (session(backend_type="walsender"), Verdict.BACKEND_TYPE),
        (session(backend_type="parallel worker", state=State.ACTIVE), Verdict.BACKEND_TYPE),
        (session(state=State.ACTIVE), Verdict.ACTIVE),
        (session(state=State.FASTPATH), Verdict.ACTIVE),
        (session(state=State.STARTING), Verdict.ACTIVE),
        (session(state=State.UNKNOWN), Verdict.ACTIVE),
        (session(state=None), Verdict.ACTIVE),
        (session(in_transaction=True), Verdict.ACTIVE),
        (session(waits_for_client=False), Verdict.ACTIVE),
        (session(idle_for=10 * MINUTE - timedelta(microseconds=1)), Verdict.TOO_YOUNG),
        (session(idle_for=-MINUTE), Verdict.TOO_YOUNG),
        (session(user="dba", is_superuser=True), Verdict.SUPERUSER),
        (session(application_name="psql"), Verdict.PROTECTED_APPLICATION),
        (session(application_name="psql:99"), Verdict.PROTECTED_APPLICATION),
        (session(application_name="PSQL"), Verdict.REAP),
        (session(application_name="shop:worker"), Verdict.EXCLUDED),
        (session(application_name="shop:worker:4711:tasks.views.run"), Verdict.EXCLUDED),
        (session(user="billing"), Verdict.EXCLUDED),
        (session(client="10.9.8.7"), Verdict.EXCLUDED),
        (session(client="fe80::1"), Verdict.REAP),
        (session(state=State.DISABLED, idle_for=None), Verdict.TRACK_ACTIVITIES_OFF),
        (session(holds_advisory_lock=True), Verdict.ADVISORY_LOCK),
        (session(last_statement=LastStatement.LISTEN), Verdict.LISTEN),
        (session(last_statement=LastStatement.HOLDS_STATE), Verdict.HOLDS_STATE),
        (session(holds_temp_table=True), Verdict.TEMP_TABLE),
        (
            session(state=State.IDLE_IN_TRANSACTION, in_transaction=True),
            Verdict.IDLE_IN_TRANSACTION,
        ),
        (session(state=State.IDLE_IN_TRANSACTION_ABORTED), Verdict.IDLE_IN_TRANSACTION),
        (session(state=State.IDLE_IN_TRANSACTION, idle_for=MINUTE), Verdict.TOO_YOUNG),
    ],
)
def test_the_first_reason_decides(row, verdict):
    assert judge(row, POLICY) is verdict


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (
            session(state=State.IDLE_IN_TRANSACTION, in_transaction=True, idle_for=2 * MINUTE),
            Verdict.REAP,
        ),
        (session(state=State.IDLE_IN_TRANSACTION_ABORTED, idle_for=2 * MINUTE), Verdict.REAP),
        (session(state=State.IDLE_IN_TRANSACTION, idle_for=MINUTE), Verdict.TOO_YOUNG),
        (session(state=State.IDLE_IN_TRANSACTION, holds_advisory_lock=True), Verdict.ADVISORY_LOCK),
        (session(state=State.IDLE_IN_TRANSACTION, waits_for_client=False), Verdict.ACTIVE),
        (session(idle_for=2 * MINUTE), Verdict.TOO_YOUNG),
    ],
)
def test_a_transaction_at_rest_has_a_threshold_of_its_own(row, verdict):
    assert judge(row, TRANSACTIONS) is verdict


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (session(user="dba", is_superuser=True), Verdict.REAP),
        (session(user="root", is_superuser=True), Verdict.SUPERUSER),
        (
            session(user="dba", is_superuser=True, application_name="psql"),
            Verdict.PROTECTED_APPLICATION,
        ),
    ],
)
def test_a_superuser_is_ended_only_where_it_is_named(row, verdict):
    assert judge(row, NAMED) is verdict
    assert judge(replace(row, user="root"), replace(POLICY, users=("*",))) in (
        verdict,
        Verdict.SUPERUSER,
    )


@pytest.mark.parametrize(
    ("policy", "row", "is_covered"),
    [
        (POLICY, session(), True),
        (POLICY, session(user="other"), False),
        (POLICY, session(user=None), False),
        (POLICY, session(database="other"), False),
        (POLICY, session(database=None), False),
        (replace(POLICY, any_database=True), session(database="other"), True),
        (replace(POLICY, users=("other",)), session(), False),
        (replace(POLICY, users=("other", "third")), session(user="third"), True),
        (replace(POLICY, users=("sh*",)), session(), False),
        (replace(POLICY, users=("*",)), session(user="anybody"), True),
        (replace(POLICY, applications=("shop:*",)), session(), True),
        (
            replace(POLICY, applications=("shop:server",)),
            session(application_name="shop:server:4711"),
            True,
        ),
        (
            replace(POLICY, applications=("*:4711",)),
            session(application_name="shop:server:4711"),
            True,
        ),
        (replace(POLICY, applications=("Shop*",)), session(), False),
        (replace(POLICY, applications=("nobody*",)), session(), False),
        (replace(POLICY, applications=("nobody*", "shop*")), session(), True),
        (replace(POLICY, applications=("",)), session(application_name=""), True),
        (replace(POLICY, clients=(ip_network("10.0.0.0/24"),)), session(), True),
        (replace(POLICY, clients=(ip_network("10.0.1.0/24"),)), session(), False),
        (replace(POLICY, clients=(ip_network("0.0.0.0/0"),)), session(client=None), False),
        (replace(POLICY, clients=(ip_network("::/0"),)), session(), False),
        (replace(POLICY, clients=(ip_network("fd00::/8"),)), session(client="fd00::7"), True),
    ],
)
def test_a_scope_covers_what_every_filter_names(policy, row, is_covered):
    assert policy.covers(row) is is_covered


@pytest.mark.parametrize(
    ("row", "might"),
    [
        (hidden(), True),
        (hidden(user="other"), False),
        (hidden(database="other"), False),
        (hidden(user=None), False),
        (hidden(database=None), False),
        (hidden(application_name="psql"), False),
        (hidden(application_name="shop:worker"), False),
        (hidden(application_name="conn_guard:idle_reaper"), False),
        (session(is_self=True), False),
    ],
)
def test_a_victim_is_looked_for_by_what_a_plain_role_sees(row, might):
    assert POLICY.might_reap(row) is might
    assert not replace(POLICY, users=("*",)).might_reap(
        replace(row, is_superuser=True, user="root")
    )


def test_a_client_filter_does_not_hide_a_hidden_row_from_the_search_for_victims():
    policy = replace(POLICY, clients=(ip_network("10.0.0.0/8"),))
    assert policy.might_reap(hidden())
    assert not policy.covers(hidden())


@given(
    row=st.builds(
        session,
        state=st.sampled_from([*State, None]),
        idle_for=st.one_of(st.none(), st.timedeltas(timedelta(days=-1), timedelta(days=1))),
        backend_type=st.sampled_from(["client backend", "walsender", "autovacuum worker", None]),
        hidden=st.booleans(),
        is_self=st.booleans(),
        in_transaction=st.booleans(),
        waits_for_client=st.booleans(),
        holds_advisory_lock=st.booleans(),
        holds_temp_table=st.booleans(),
        last_statement=st.sampled_from(LastStatement),
        application_name=st.sampled_from(["shop:server", "psql", "conn_guard:idle_reaper"]),
    ),
    policy=st.sampled_from([POLICY, TRANSACTIONS, NAMED]),
)
def test_only_proven_rest_is_reaped(row, policy):
    if judge(row, policy) is Verdict.REAP:
        assert row.waits_for_client
        assert row.state is State.IDLE or policy.idle_in_transaction_for
        assert row.in_state_for >= min(
            policy.idle_for, policy.idle_in_transaction_for or policy.idle_for
        )
        assert not (row.is_self)
        assert not (row.holds_advisory_lock)
        assert not (row.holds_temp_table)
        assert row.application_name == "shop:server"


def test_each_role_and_application_keeps_its_most_recently_used_sessions():
    rows = [
        session(pid=1, idle_for=40 * MINUTE, application_name="shop:1"),
        session(pid=2, idle_for=30 * MINUTE, application_name="shop:2"),
        session(pid=3, idle_for=20 * MINUTE, application_name="shop:3"),
        session(pid=4, idle_for=50 * MINUTE, application_name="jobs"),
        session(pid=5, idle_for=60 * MINUTE, application_name="shop", user="other"),
    ]
    judged = keep_recent([(row, Verdict.REAP) for row in rows], 1)
    assert [(row.pid, verdict) for row, verdict in judged] == [
        (1, Verdict.REAP),
        (2, Verdict.REAP),
        (3, Verdict.KEEP),
        (4, Verdict.KEEP),
        (5, Verdict.KEEP),
    ]


def test_a_session_in_use_counts_as_the_most_recently_used():
    rows = [
        (session(pid=1, idle_for=40 * MINUTE), Verdict.REAP),
        (session(pid=2, idle_for=60 * MINUTE, state=State.ACTIVE), Verdict.ACTIVE),
        (session(pid=3, idle_for=MINUTE), Verdict.TOO_YOUNG),
        (session(pid=4, idle_for=timedelta(0), is_self=True, state=State.ACTIVE), Verdict.SELF),
    ]
    assert {row.pid: verdict for row, verdict in keep_recent(rows, 2)}[1] is Verdict.REAP
    assert {row.pid: verdict for row, verdict in keep_recent(rows, 3)}[1] is Verdict.KEEP
    assert keep_recent(rows, 0) == rows
