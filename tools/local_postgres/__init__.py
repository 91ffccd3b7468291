"""A PostgreSQL server of our own for the example and the tests: TCP on loopback, gone without a
trace.

This room holds the launcher's public names; it stands outside `conn_guard`, which never starts a
server."""

from tools.local_postgres.binaries import find_binaries
from tools.local_postgres.server import LocalPostgres, LocalPostgresError, server_address
from tools.local_postgres.supervisor import unprivileged

__all__ = ["LocalPostgres", "LocalPostgresError", "find_binaries", "server_address", "unprivileged"]
