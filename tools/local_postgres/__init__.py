"""A throwaway PostgreSQL server on 127.0.0.1, for the example and the tests.

The package conn_guard doesn't use it.
"""

from tools.local_postgres.binaries import find_binaries
from tools.local_postgres.server import LocalPostgres, LocalPostgresError, server_address
from tools.local_postgres.supervisor import unprivileged

__all__ = ["LocalPostgres", "LocalPostgresError", "find_binaries", "server_address", "unprivileged"]
