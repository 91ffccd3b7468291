"""The answer of an alias's server: the facts, or the reason why it could not be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import connections

from conn_guard.checks.project import Alias

# pg_settings has the values in force for this session, those of the role and the database included,
# and no row for a setting that the server is too old for. session_user, not current_user: the role
# that logged in takes the slot, whatever SET ROLE says.
FACTS = """
SELECT pg_catalog.pg_backend_pid() AS backend_pid,
       d.datname::text AS database,
       d.datconnlimit AS database_limit,
       r.rolname::text AS role,
       r.rolconnlimit AS role_limit,
       r.rolsuper AS is_superuser,
       ARRAY(SELECT s.name || '=' || s.setting FROM pg_catalog.pg_settings s WHERE s.name IN (
           'idle_session_timeout', 'idle_in_transaction_session_timeout', 'max_connections',
           'superuser_reserved_connections', 'reserved_connections',
           'rds.rds_superuser_reserved_connections')) AS settings
FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
WHERE r.rolname = session_user AND d.datname = current_database()
"""


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """An alias and the facts about its own session and its limits; a limit of None is no limit.

    *settings* holds timeouts in milliseconds and counts of connections, as pg_settings does.
    """

    alias: Alias
    backend_pid: int
    client_pid: int
    database: str
    database_limit: int | None
    role: str
    role_limit: int | None
    is_superuser: bool
    settings: Mapping[str, int]

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler reported a made-up backend pid at login."""
        return self.backend_pid != self.client_pid


@dataclass(frozen=True, kw_only=True)
class NoAnswer:
    """An alias and the error that came in place of its server's answer."""

    alias: Alias
    error: Exception


def ask(alias: Alias) -> ServerFacts | NoAnswer | None:
    """Return the answer of the alias's server, or None where the engine is not PostgreSQL's.

    Connects through Django's own connection of the alias if need be, and never raises.
    """
    try:
        connection = connections[str(alias.name)]
        return _facts(alias, connection) if connection.vendor == "postgresql" else None
    # An engine that can't be loaded and a server that is away are findings, not crashes.
    except Exception as error:  # noqa: BLE001
        return NoAnswer(alias=alias, error=error)


def _facts(alias: Alias, connection: Any) -> ServerFacts:
    with connection.cursor() as cursor:
        cursor.execute(FACTS)
        found = cursor.fetchone()
        names = [column[0] for column in cursor.description]
    # Without autocommit the question began a transaction that nothing else would end.
    if not connection.in_atomic_block and not connection.get_autocommit():
        connection.rollback()
    if found is None:
        raise LookupError("the server doesn't list the role or the database of this session")
    row = dict(zip(names, found, strict=True))
    # No CONNECTION LIMIT binds a superuser.
    role_limit = -1 if row["is_superuser"] else row["role_limit"]
    return ServerFacts(
        alias=alias,
        backend_pid=row["backend_pid"],
        client_pid=connection.connection.info.backend_pid,
        database=row["database"],
        database_limit=row["database_limit"] if row["database_limit"] >= 0 else None,
        role=row["role"],
        role_limit=role_limit if role_limit >= 0 else None,
        is_superuser=row["is_superuser"],
        settings={
            name: int(value) for name, _, value in (each.partition("=") for each in row["settings"])
        },
    )
