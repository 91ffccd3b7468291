"""The settings as the rules read them, by value: this room holds the project and its aliases."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from numbers import Real
from typing import Any, Literal

import django
from django.conf import settings as django_settings

from conn_guard import conf
from conn_guard.text import shown

YEAR_SECONDS = 365 * 24 * 60 * 60
DUMMY = "django.db.backends.dummy"
STOCK_PREFIXES = ("django.db.backends.", "django.contrib.gis.db.backends.", "conn_guard.engine.")
STOCK_POSTGRES = frozenset(
    {
        "django.db.backends.postgresql",
        "django.db.backends.postgresql_psycopg2",
        "django.contrib.gis.db.backends.postgis",
        "conn_guard.engine.postgresql",
        "conn_guard.engine.postgis",
    }
)
# What an engine's import string tells. A subclass of Django's engine nearly always keeps a word of
# it, and the word is all that may be known: an engine is never imported, because GIS, tenants and
# metrics may not load where checks run.
_POSTGRES_WORDS = re.compile(
    r"postg|psycopg|psql|pgsql|timescale|tenant|cockroach|redshift|yugabyte|citus"
)
_OTHER_WORDS = re.compile(
    r"mysql|mariadb|tidb|oracle|mssql|sql_?server|pyodbc|snowflake|bigquery|spanner|mongo|clickhouse|firebird|db2|ldap|"
    r"salesforce|cassandra"
)
_FILE_WORDS = re.compile(r"sqlite|spatialite")
_POOL_WORDS = re.compile(r"geventpool|postgrespool|conn_pool|connection_pool")


@dataclass(frozen=True)
class Project:
    """The settings of a project. Nothing in them is imported, connected to or written to."""

    settings: Any

    @classmethod
    def current(cls) -> Project:
        """Return the running project."""
        return cls(django_settings)

    def get(self, name: str, default: object = None) -> Any:
        """Return the setting *name*, or *default* where it isn't there."""
        return getattr(self.settings, name, default)

    @cached_property
    def conn_guard(self) -> conf.Settings:
        """CONN_GUARD, as far as it can be read."""
        return conf.parse(self.get("CONN_GUARD", {}))[0]

    @cached_property
    def aliases(self) -> tuple[Alias, ...]:
        """Every alias whose value is a dict."""
        databases = self.get("DATABASES")
        if not isinstance(databases, Mapping):
            return ()
        return tuple(
            Alias(self, name, values)
            for name, values in databases.items()
            if isinstance(values, Mapping)
        )

    @cached_property
    def middleware(self) -> tuple[str, ...]:
        """The import strings in MIDDLEWARE."""
        listed = self.get("MIDDLEWARE")
        return (
            tuple(each for each in listed if isinstance(each, str))
            if isinstance(listed, (list, tuple))
            else ()
        )

    @cached_property
    def served_by(self) -> Literal["ASGI", "either"] | None:
        """What the settings tell of the server: ASGI alone, either, or nothing that speaks for
        ASGI.
        """
        if not self.get("ASGI_APPLICATION"):
            return None
        return "either" if self.get("WSGI_APPLICATION") else "ASGI"

    @cached_property
    def driver(self) -> Literal["psycopg", "psycopg2"] | None:
        """The driver that Django takes: psycopg 3 wherever it can be imported."""
        if _is_importable("psycopg"):
            return "psycopg"
        return "psycopg2" if _is_importable("psycopg2") else None


@dataclass(frozen=True)
class Alias:
    """One alias of DATABASES.

    Django writes its defaults into DATABASES at the first use of a connection, so an absent key and
    a key with the default value must read the same."""

    project: Project
    name: object
    values: Mapping[object, object]

    def __str__(self) -> str:
        return f"DATABASES[{shown(self.name)}]"

    @cached_property
    def engine(self) -> str:
        """ENGINE, or Django's word for none."""
        engine = self.values.get("ENGINE")
        return (
            engine
            if isinstance(engine, str) and engine not in ("", "django.db.backends.")
            else DUMMY
        )

    @cached_property
    def connects(self) -> bool:
        """Whether anything is ever opened for this alias."""
        return self.engine != DUMMY

    @cached_property
    def networked(self) -> bool:
        """Whether a server stands at the other end."""
        return self.connects and not _FILE_WORDS.search(self.engine.lower())

    @cached_property
    def is_stock(self) -> bool:
        """Whether Django's own code, or ours on top of it, reads this alias."""
        return self.engine.startswith(STOCK_PREFIXES)

    @cached_property
    def is_stock_postgres(self) -> bool:
        """Whether Django's own PostgreSQL engine, or ours on top of it, reads OPTIONS."""
        return self.engine in STOCK_POSTGRES

    @cached_property
    def is_postgres(self) -> bool:
        """Whether the engine is PostgreSQL's by its name."""
        return self.is_stock_postgres or bool(_POSTGRES_WORDS.search(self.engine.lower()))

    @cached_property
    def may_be_postgres(self) -> bool:
        """Whether nothing in the engine's name speaks against PostgreSQL."""
        return self.is_postgres or (self.networked and not _OTHER_WORDS.search(self.engine.lower()))

    @cached_property
    def looks_before_use(self) -> bool:
        """Whether the engine replaces a session that the server ended, as ours does."""
        return self.engine.startswith("conn_guard.engine.")

    @cached_property
    def age(self) -> object:
        """CONN_MAX_AGE."""
        return self.values.get("CONN_MAX_AGE", 0)

    @cached_property
    def persistent(self) -> bool:
        """Whether a connection outlives its request. A nan makes it so: Django's comparison with it
        is never true.
        """
        return self.age is None or (isinstance(self.age, Real) and not self.age <= 0)

    @cached_property
    def health_checks(self) -> bool:
        """Whether CONN_HEALTH_CHECKS counts as true."""
        return bool(self.values.get("CONN_HEALTH_CHECKS", False))

    @cached_property
    def cursors_disabled(self) -> bool:
        """Whether DISABLE_SERVER_SIDE_CURSORS counts as true."""
        return bool(self.values.get("DISABLE_SERVER_SIDE_CURSORS", False))

    @cached_property
    def options(self) -> Mapping[object, object]:
        """OPTIONS, empty where it isn't a dict."""
        options = self.values.get("OPTIONS")
        return options if isinstance(options, Mapping) else {}

    @cached_property
    def pool(self) -> object:
        """OPTIONS["pool"]."""
        return self.options.get("pool")

    @cached_property
    def pools(self) -> bool:
        """Whether Django is asked for a pool and has one for this engine."""
        return (
            bool(self.pool)
            and self.pool_unsupported is None
            and (self.takes_pool or self.engine in _STOCK_ORACLE)
        )

    @cached_property
    def takes_pool(self) -> bool:
        """Whether OPTIONS["pool"] is for psycopg_pool: in Django's PostgreSQL engine and in what is
        built on it.
        """
        return self.is_postgres and not _POOL_WORDS.search(self.engine.lower())

    @cached_property
    def pool_unsupported(self) -> str | None:
        """Why OPTIONS["pool"] fails here whatever its value, if it does."""
        if self.engine in _STOCK_ORACLE:
            return (
                None
                if django.VERSION >= (5, 2)
                else f"Django {django.get_version()} has no pool for Oracle"
            )
        if self.engine in _STOCK_WITHOUT_POOL:
            return "Django has no pool for this engine"
        if not self.takes_pool:
            return None
        if django.VERSION < (5, 1):
            return f"Django {django.get_version()} has no pool"
        if self.project.driver == "psycopg2":
            return "psycopg 2 has no pool"
        if self.project.driver == "psycopg" and not _is_importable("psycopg_pool"):
            return "psycopg_pool can't be imported"
        return None

    @cached_property
    def pool_options(self) -> Mapping[object, object]:
        """The options of Django's pool, empty for a pool with its defaults."""
        return self.pool if isinstance(self.pool, Mapping) else {}

    @cached_property
    def pool_sizes(self) -> tuple[object, object]:
        """The pool's min_size and max_size, as psycopg_pool fills them in."""
        least = self.pool_options.get("min_size", 4)
        most = self.pool_options.get("max_size")
        return least, least if most is None else most

    @cached_property
    def kept_seconds(self) -> float:
        """For how long an unused connection may be kept: 0 for not at all, infinity for no limit.

        A pool keeps its first min_size connections for max_lifetime, and only what goes beyond them
        for max_idle."""
        if self.pools:
            key, default = ("max_lifetime", 3600.0) if self.pool_sizes[0] else ("max_idle", 600.0)
            kept = self.pool_options.get(key, default)
            return float(kept) if isinstance(kept, Real) else default
        if not self.persistent:
            return 0
        return (
            float(self.age) if isinstance(self.age, Real) and self.age < YEAR_SECONDS else math.inf
        )

    @cached_property
    def startup_settings(self) -> Mapping[str, str]:
        """What OPTIONS["options"] sets on the server: ``-c name=value`` and ``--name=value``, the
        last one wins.
        """
        text = self.options.get("options")
        if not isinstance(text, str):
            return {}
        return {
            match["name"].replace("-", "_").lower(): match["value"]
            for match in _STARTUP.finditer(text)
        }

    @cached_property
    def addresses(self) -> tuple[tuple[str, str], ...]:
        """Host and port of each server that may be tried; an empty port is libpq's own default."""
        hosts = _listed(
            self.values.get("HOST") or self.options.get("host") or self.options.get("hostaddr")
        )
        ports = _listed(self.values.get("PORT") or self.options.get("port"))
        if len(ports) < len(hosts):
            ports = ports * len(hosts) if len(ports) == 1 else (*ports, *[""] * len(hosts))
        return tuple(zip(hosts, ports, strict=False))

    @cached_property
    def pooler(self) -> tuple[Literal["transaction", "session", "unknown"], str] | None:
        """The mode of what stands between us and the server and how we know, or None where nothing
        speaks for a pooler.
        """
        if not self.may_be_postgres:
            return None
        declared = self.project.conn_guard.pooler.get(self.name)  # type: ignore[call-overload]
        if declared:
            return declared, f"CONN_GUARD['POOLER'] says {declared!r}"
        found = [pooler for host, port in self.addresses if (pooler := _pooler(host, port))]
        return min(found, key=lambda pooler: pooler[0] != "transaction", default=None)


_STOCK_WITHOUT_POOL = frozenset(
    {
        "django.db.backends.sqlite3",
        "django.db.backends.mysql",
        "django.contrib.gis.db.backends.spatialite",
        "django.contrib.gis.db.backends.mysql",
    }
)
_STOCK_ORACLE = frozenset({"django.db.backends.oracle", "django.contrib.gis.db.backends.oracle"})
# Values may be quoted for the shell's sake; a space inside is written with a backslash.
_STARTUP = re.compile(
    r"""(?:^|(?<=\s))(?:-c\s*|--)(?P<name>[A-Za-z_][\w.-]*)=(?P<value>(?:\\.|[^\s\\])*)"""
)
_POOLER_NAME = re.compile(r"pgbouncer|pgcat|odyssey|pooler")


def _pooler(host: str, port: str) -> tuple[Literal["transaction", "unknown"], str] | None:
    """Return the mode of the pooler at this address, if its name or port tells that it is one."""
    if host.endswith(".pooler.supabase.com"):
        if port in ("", "5432"):
            return None  # its session mode, which behaves as the server does
        if port == "6543":
            return "transaction", f"{shown(host)} at port 6543 is Supabase's transaction mode"
    if "-pooler." in host and host.endswith(".neon.tech"):
        return "transaction", f"{shown(host)} is Neon's pooler, in transaction mode"
    if _POOLER_NAME.search(host):
        return "unknown", f"the host is {shown(host)}"
    return ("unknown", f"the port is {port}") if port in ("6432", "6543") else None


def _listed(value: object) -> tuple[str, ...]:
    """Return the hosts or ports in *value*: libpq takes several with commas; always at least one,
    empty for the default.
    """
    if isinstance(value, (list, tuple)):
        return tuple(part for each in value for part in _listed(each)) or ("",)
    # No port is larger, and Python refuses to print the largest numbers.
    is_port = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536
    text = str(value) if is_port or isinstance(value, str) else ""
    return tuple(part.strip().lower().rstrip(".") for part in text.split(","))


@cache
def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a stand-in without a spec lies in sys.modules
        return True
