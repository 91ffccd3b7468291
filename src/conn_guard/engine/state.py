"""The queries that ask a session of the application which state it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# One row for each piece of state that is lost with the session and that the session can list.
# Relations in the temporary schema are listed and not the schema, because the schema stays after
# DROP TABLE. Only holdable cursors are listed, because the others end with their transaction.
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

# Other sessions see only the last statement of an idle session. HELD_STATE would hide a LISTEN
# from the reaper, so this statement follows it.
MARK_HELD_STATE = "/* conn_guard:holds-state */ SELECT 1"


def held_state(raw: Any) -> frozenset[str]:
    """Return the state that the session of *raw*, a driver connection in autocommit, holds.

    Raises the driver's errors.
    """
    with raw.cursor() as cursor:
        cursor.execute(HELD_STATE)
        return frozenset(item for (item,) in cursor.fetchall())


def held_after_connect(
    *,
    timezone: str | None,
    role: str | None,
    isolation: str,
    reported: Mapping[str, str | None],
) -> frozenset[str]:
    """Return the state that the setup of a connection makes in its session.

    Django sets the time zone, the role and, with psycopg2, *isolation*. The settings that the
    server *reported* may be set too: psycopg2 sets a DateStyle, PgBouncer what its client named.
    """
    held = {
        f"setting TimeZone={timezone}",
        f"role {role}",
        f"setting default_transaction_isolation={isolation}",
        *(f"setting {name}={value}" for name, value in reported.items()),
    }
    return frozenset(held)


def mark_held_state(raw: Any) -> None:
    """Make the mark for the reaper the last statement of *raw*'s session.

    Raises the driver's errors.
    """
    with raw.cursor() as cursor:
        cursor.execute(MARK_HELD_STATE)
