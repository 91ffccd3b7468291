"""Looks at a server for the tables of the pure tests."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

from conn_guard.sessions.census import Limits, by_state, judge_all, nearest_limit
from conn_guard.sessions.groups import Finding, Row, Setting, Snapshot, limit_kind
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.session import State
from tests.support.rows import NOON, hidden, session

POLICY = Policy(
    idle_for=timedelta(minutes=10),
    login_role="shop",
    database="shop",
    protected_applications=("psql*",),
)


def row(last: str = "SELECT auth_user", *, blocked_by: tuple[int, ...] = (), **fields: Any) -> Row:
    """Return a session as a report has it, not judged yet."""
    return Row(session=session(**fields), last=last, blocked_by=blocked_by)


def leaked(number: int, *, idle_for: timedelta = timedelta(minutes=15), **fields: Any) -> Row:
    """Return a session that served one request and was not used again."""
    start = NOON - idle_for - timedelta(seconds=0.2)
    return row(pid=1000 + number, backend_start=start, idle_for=idle_for, **fields)


def look(*rows: Row, policy: Policy = POLICY, slots: int = 97, **fields: Any) -> Snapshot:
    """Return the look at a server with *rows*, judged by *policy*."""
    sessions = [each.session for each in rows]
    limits = fields.pop("limits", Limits(server=slots, database=None, roles={}))
    verdicts = {each.pid: verdict for each, verdict in judge_all(sessions, policy)}
    fullest = nearest_limit(sessions, policy, limits)
    known: dict[str, Any] = {
        "alias": "default",
        "address": "shop@db:5432/shop",
        "server_version": "18.6",
        "observed_at": NOON,
        "policy": policy,
        "rows": [
            Row(
                session=each.session,
                verdict=verdicts.get(each.session.pid),
                last=each.last,
                blocked_by=each.blocked_by,
            )
            for each in rows
        ],
        "census": by_state(sessions),
        "limits": limits,
        "slots": fullest,
        "slots_limit": limit_kind(sessions, policy, limits, fullest),
        "held_by_role": Counter(each.user or "" for each in sessions),
        "settings": {"idle_session_timeout": Setting(0, "ms"), "max_connections": Setting(100, "")},
    }
    return Snapshot(**{**known, **fields})


MORNING = look(
    *(leaked(number, idle_for=timedelta(minutes=12 + number)) for number in range(38)),
    *(leaked(100 + number, last="COMMIT") for number in range(3)),
    row(pid=1, idle_for=timedelta(0), state=State.ACTIVE, application_name="shop:worker"),
    row(
        "UPDATE orders",
        pid=2,
        state=State.IDLE_IN_TRANSACTION,
        idle_for=timedelta(minutes=7),
        in_transaction=True,
        application_name="shop:worker",
    ),
    row(
        "UPDATE orders",
        pid=3,
        state=State.ACTIVE,
        idle_for=timedelta(minutes=5),
        blocked_by=(2,),
        application_name="billing",
        user="billing",
        database="billing",
    ),
    row("SELECT", pid=4, application_name="psql", client=None, idle_for=timedelta(hours=3)),
    row("LISTEN", pid=5, application_name="shop:events", holds_advisory_lock=True),
    Row(session=hidden(pid=6, user="metrics", database="metrics", application_name="exporter")),
    slots=50,
    grant="GRANT pg_read_all_stats TO shop;",
    findings=[
        Finding(
            "I305",
            "The role 'shop' of DATABASES['default'] has no idle_in_transaction_session_timeout.",
            "ALTER ROLE shop SET idle_in_transaction_session_timeout = '5min';",
        )
    ],
)
"""A server at three in the morning, with a leak and a transaction that blocks another session."""
