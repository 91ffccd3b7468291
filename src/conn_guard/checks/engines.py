"""Knowledge about ENGINE strings, drivers and the addresses of poolers; no engine is imported."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import django
from django.utils.functional import Promise

from conn_guard.text import shown

DUMMY = "django.db.backends.dummy"
OURS = "conn_guard.engine."
STOCK_PREFIXES = ("django.db.backends.", "django.contrib.gis.db.backends.", OURS)
STOCK_POSTGRES = frozenset(
    {
        "django.db.backends.postgresql",
        "django.db.backends.postgresql_psycopg2",
        "django.contrib.gis.db.backends.postgis",
        "conn_guard.engine.postgresql",
        "conn_guard.engine.postgis",
    }
)
STOCK_ORACLE = frozenset({"django.db.backends.oracle", "django.contrib.gis.db.backends.oracle"})
STOCK_WITHOUT_POOL = frozenset(
    {
        "django.db.backends.sqlite3",
        "django.db.backends.mysql",
        "django.contrib.gis.db.backends.spatialite",
        "django.contrib.gis.db.backends.mysql",
    }
)

# The import string is all that the rules may use: GIS, tenants and metrics engines may not load
# where checks run. A subclass of Django's engine nearly always keeps a word of its name.
_POSTGRES_WORDS = re.compile(
    r"postg|psycopg|psql|pgsql|timescale|tenant|cockroach|redshift|yugabyte|citus"
)
_OTHER_WORDS = re.compile(
    r"mysql|mariadb|tidb|oracle|mssql|sql_?server|pyodbc|snowflake|bigquery|spanner|mongo|clickhouse|"
    r"firebird|db2|ldap|salesforce|cassandra"
)
_FILE_WORDS = re.compile(r"sqlite|spatialite|sqlcipher")
_POOL_WORDS = re.compile(r"geventpool|postgrespool|conn_pool|connection_pool")
# Engines that keep a connection with its thread unless CONN_MAX_AGE is 0.
_THREAD_BOUND_POOL_WORDS = re.compile(r"geventpool|postgrespool")
_POOLER_WORDS = re.compile(r"pgbouncer|pgcat|odyssey|pooler")

Driver = Literal["psycopg", "psycopg2"]


@dataclass(frozen=True)
class Engine:
    """The value of ENGINE and everything that its text tells."""

    path: str

    @classmethod
    def of(cls, value: object) -> Engine:
        """Return the engine that Django takes for *value*, its dummy engine for none."""
        path = str(value) if isinstance(value, (str, Promise)) else ""
        return cls(DUMMY if path in ("", "django.db.backends.") else path)

    @cached_property
    def connects(self) -> bool:
        """Whether the engine opens connections."""
        return self.path != DUMMY

    @cached_property
    def networked(self) -> bool:
        """Whether the engine talks to a server, not to a file."""
        return self.connects and not self._has(_FILE_WORDS)

    @cached_property
    def is_ours(self) -> bool:
        """Whether it is an engine of conn_guard."""
        return self.path.startswith(OURS)

    @cached_property
    def is_stock(self) -> bool:
        """Whether it is an engine of Django or of conn_guard."""
        return self.path.startswith(STOCK_PREFIXES)

    @cached_property
    def is_stock_postgres(self) -> bool:
        """Whether it is the PostgreSQL engine of Django or of conn_guard."""
        return self.path in STOCK_POSTGRES

    @cached_property
    def is_postgres(self) -> bool:
        """Whether its name says that it is for PostgreSQL."""
        return self.is_stock_postgres or self._has(_POSTGRES_WORDS)

    @cached_property
    def may_be_postgres(self) -> bool:
        """Whether its name does not exclude PostgreSQL."""
        return self.is_postgres or (self.networked and not self._has(_OTHER_WORDS))

    @cached_property
    def has_tenants(self) -> bool:
        """Whether it sets a schema for each tenant."""
        # django-multitenant filters rows and sets nothing on the session.
        return "tenant" in self.path.lower() and not self.path.startswith("django_multitenant.")

    @cached_property
    def has_thread_bound_pool(self) -> bool:
        """Whether it has a pool that gets no connection back unless CONN_MAX_AGE is 0."""
        return self._has(_THREAD_BOUND_POOL_WORDS)

    @cached_property
    def takes_pool(self) -> bool:
        """Whether it passes OPTIONS["pool"] to psycopg_pool, as Django's PostgreSQL engine does."""
        return self.is_postgres and not self._has(_POOL_WORDS)

    @cached_property
    def reads_pool(self) -> bool:
        """Whether it makes a pool of OPTIONS["pool"], with psycopg_pool or Oracle's driver."""
        return self.takes_pool or self.path in STOCK_ORACLE

    def pool_unsupported(self, driver: Driver | None) -> str | None:
        """Return why OPTIONS["pool"] fails with this engine whatever its value, or None."""
        if self.path in STOCK_ORACLE:
            return (
                None
                if django.VERSION >= (5, 2)
                else f"Django {django.get_version()} has no pool for Oracle"
            )
        if self.path in STOCK_WITHOUT_POOL:
            return "Django has no pool for this engine"
        if not self.takes_pool:
            return None
        if django.VERSION < (5, 1):
            return f"Django {django.get_version()} has no pool"
        if driver == "psycopg2":
            return "psycopg 2 has no pool"
        if driver == "psycopg" and not is_importable("psycopg_pool"):
            return "psycopg_pool can't be imported"
        return None

    def _has(self, words: re.Pattern[str]) -> bool:
        return bool(words.search(self.path.lower()))


def driver() -> Driver | None:
    """Return the driver that Django takes: psycopg 3 wherever it can be imported."""
    if is_importable("psycopg"):
        return "psycopg"
    return "psycopg2" if is_importable("psycopg2") else None


def pooler(host: str, port: str) -> tuple[Literal["transaction", "unknown"], str] | None:
    """Return the mode of the pooler at this address and the evidence, or None for no pooler."""
    if host.endswith(".pooler.supabase.com"):
        if port in ("", "5432"):
            return None  # its session mode, which behaves as the server does
        if port == "6543":
            return "transaction", f"{shown(host)} at port 6543 is Supabase's transaction mode"
    if "-pooler." in host and host.endswith(".neon.tech"):
        return "transaction", f"{shown(host)} is Neon's pooler, in transaction mode"
    if _POOLER_WORDS.search(host):
        return "unknown", f"the host is {shown(host)}"
    return ("unknown", f"the port is {port}") if port in ("6432", "6543") else None


@cache
def is_importable(name: str) -> bool:
    """Return whether the module *name* can be imported; nothing is imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a stand-in without a spec lies in sys.modules
        return True
