"""The SQL with which the server ends idle sessions itself."""

from __future__ import annotations

from conn_guard.sessions.policy import ANY_USER, Policy
from conn_guard.text import sql_name


def render_advice(policy: Policy) -> list[str]:
    """Return the SQL that would do the work of *policy* inside the server, and as comments when not
    to run it.
    """
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
        (
            "-- The server can end idle sessions itself, without a race and without a slot for a"
            " reaper:"
        ),
        *settings,
        "-- It holds for sessions that log in from now on. Don't run it where these roles",
        "--   LISTEN, or keep advisory locks or temporary tables: it spares nobody;",
        (
            "--   come through a pooler, or a pool that keeps connections for longer: take the"
            " pool's own limit"
        ),
        "--   (PgBouncer: server_idle_timeout);",
        (
            "--   have a CONN_MAX_AGE above it without CONN_HEALTH_CHECKS: requests would meet a"
            " closed connection."
        ),
    ]
