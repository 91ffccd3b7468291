"""The SQL that makes the server end idle sessions itself, for ``--advise``."""

from __future__ import annotations

from conn_guard.sessions.policy import ANY_USER, Policy
from conn_guard.text import sql_name


def render_advice(policy: Policy) -> list[str]:
    """Return the SQL by which the server does the work of *policy*, and when not to use it."""
    roles = (
        ["ALL"]
        if ANY_USER in policy.users
        else [sql_name(role) for role in policy.users or (policy.login_role,)]
    )
    where = "" if policy.any_database else f" IN DATABASE {sql_name(policy.database)}"
    timeouts = {"idle_session_timeout": policy.idle_for}
    if policy.idle_in_transaction_for is not None:
        timeouts["idle_in_transaction_session_timeout"] = policy.idle_in_transaction_for
    settings = [
        f"ALTER ROLE {role}{where} SET {name} = '{round(timeout.total_seconds() * 1000)}ms';"
        for role in roles
        for name, timeout in timeouts.items()
    ]
    return [
        "-- The server can end idle sessions itself, without a race and without a reaper's slot:",
        *settings,
        "-- This applies to sessions that log in from now on. Don't use it where these roles",
        "--   LISTEN, or keep advisory locks or temporary tables: no session is spared;",
        "--   connect through a pooler, or a pool that keeps connections longer: set the pool's",
        "--   own limit (PgBouncer: server_idle_timeout);",
        "--   have a longer CONN_MAX_AGE without CONN_HEALTH_CHECKS: requests would fail on a",
        "--   closed connection.",
    ]
