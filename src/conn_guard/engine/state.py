"""Asks a session of the application which state it holds, on the driver's own connection."""

from __future__ import annotations

from typing import Any

# Everything that would be lost with the session and that it can list, one line each. A relation in
# the temporary schema, because the schema itself stays after DROP TABLE. Cursors: only a holdable
# one outlives its transaction.
HELD_STATE = """
SELECT 'listening ' || channel FROM pg_catalog.pg_listening_channels() AS channel
UNION ALL SELECT 'lock ' || pg_catalog.concat_ws(' ', classid, objid, objsubid)
FROM pg_catalog.pg_locks
          WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()
UNION ALL SELECT 'temporary ' || relname FROM pg_catalog.pg_class
WHERE relnamespace = pg_catalog.pg_my_temp_schema()
UNION ALL SELECT 'role ' || current_user WHERE current_user <> session_user
UNION ALL SELECT 'cursor ' || name FROM pg_catalog.pg_cursors WHERE is_holdable
UNION ALL SELECT 'prepared ' || name FROM pg_catalog.pg_prepared_statements WHERE from_sql
UNION ALL SELECT 'setting ' || name || '=' || setting FROM pg_catalog.pg_settings
WHERE source = 'session'
"""

# The last statement is all that others see of a session at rest, so it says what the question
# before it would have hidden.
MARK_HELD_STATE = "/* conn_guard:holds-state */ SELECT 1"


def held_state(raw: Any) -> frozenset[str]:
    """Return what the session of the driver connection *raw*, in autocommit, holds; raise the
    driver's errors.
    """
    with raw.cursor() as cursor:
        cursor.execute(HELD_STATE)
        return frozenset(item for (item,) in cursor.fetchall())


def held_after_connect(*, timezone: str | None, role: str | None, isolation: str) -> frozenset[str]:
    """Return what a session holds as soon as Django has connected it; psycopg2 sets *isolation* at
    connect.
    """
    held = {
        f"setting TimeZone={timezone}",
        f"role {role}",
        f"setting default_transaction_isolation={isolation}",
    }
    return frozenset(held)


def mark_held_state(raw: Any) -> None:
    """Let the last statement of *raw*'s session tell a reaper that it holds state; raise the
    driver's errors.
    """
    with raw.cursor() as cursor:
        cursor.execute(MARK_HELD_STATE)
