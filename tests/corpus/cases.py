"""Settings as projects write them, and every id that each of them deserves."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

POSTGRES = "django.db.backends.postgresql"
SQLITE = "django.db.backends.sqlite3"
MYSQL = "django.db.backends.mysql"
WSGI = {"WSGI_APPLICATION": "shop.wsgi.application"}
TENANTS = {**WSGI, "INSTALLED_APPS": ["django_tenants", "shop"]}
ASGI = {"ASGI_APPLICATION": "shop.asgi.application"}


@dataclass(frozen=True)
class Case:
    """One project: its mistake, its settings, and the ids that it deserves, no other."""

    title: str
    ids: str
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def wanted(self) -> set[str]:
        return set(self.ids.split())

    @property
    def default(self) -> dict[str, Any]:
        return self.settings["DATABASES"]["default"]


def one(title: str, ids: str = "", others: Mapping[str, Any] = WSGI, /, **values: Any) -> Case:
    """Return a project with one alias of PostgreSQL."""
    alias = {"ENGINE": POSTGRES, "NAME": "shop", "USER": "shop", "HOST": "database", **values}
    return Case(title, ids, {**others, "DATABASES": {"default": alias}})


def pooled(title: str, ids: str = "", /, *, pool: object, **values: Any) -> Case:
    """Return a project that asks for Django's pool, with health checks by default."""
    return one(title, ids, **{"CONN_HEALTH_CHECKS": True, "OPTIONS": {"pool": pool}, **values})


def several(title: str, ids: str, others: Mapping[str, Any] = WSGI, /, **aliases: Any) -> Case:
    return Case(title, ids, {**others, "DATABASES": aliases})


KEPT = {"CONN_MAX_AGE": 120, "CONN_HEALTH_CHECKS": True}
SESSION_POOLER = {"HOST": "aws-1-us-west-2.pooler.supabase.com", "PORT": "5432"}
TRANSACTION_POOLER = {"HOST": "aws-1-us-west-2.pooler.supabase.com", "PORT": 6543}

CASES = [
    # The age
    one("the variable of the environment was never cast", "E101", CONN_MAX_AGE="120"),
    one("a compose file passes the variable on, and it is empty", "E101", CONN_MAX_AGE=""),
    one("no limit, in quotes", "E101", CONN_MAX_AGE="None", CONN_HEALTH_CHECKS=True),
    one("a trailing comma", "E101", CONN_MAX_AGE=(300,)),
    one("a list of one", "E101", CONN_MAX_AGE=[300]),
    one("a timedelta, as for session cookies", "E101", CONN_MAX_AGE=datetime.timedelta(minutes=2)),
    one("a Decimal", "E101", CONN_MAX_AGE=Decimal("30")),
    one("the text is wrong on SQLite as well", "E101", ENGINE=SQLITE, CONN_MAX_AGE="30"),
    one("True for persistent", "W102", CONN_MAX_AGE=True, CONN_HEALTH_CHECKS=True),
    one("False for not persistent", "", CONN_MAX_AGE=False),
    one("minus one for no limit", "W103", CONN_MAX_AGE=-1),
    one("no limit, in floating point", "W104", CONN_MAX_AGE=float("inf"), CONN_HEALTH_CHECKS=True),
    one("ten years", "W104 W122", CONN_MAX_AGE=315_360_000),
    one("half a minute and a bit", "I123", CONN_MAX_AGE=30.5),
    one("the documentation's first example", "I123", CONN_MAX_AGE=600),
    one("kept for a quarter of an hour", "W122", CONN_MAX_AGE=900),
    one("kept without limit", "W122", CONN_MAX_AGE=None),
    one("kept without limit, on MySQL", "W122", ENGINE=MYSQL, CONN_MAX_AGE=None),
    one("kept without limit, in a file", "", ENGINE=SQLITE, CONN_MAX_AGE=None),
    one("kept with health checks", "", **KEPT),
    one("health checks and not kept", "", CONN_HEALTH_CHECKS=True),
    one("kept by an engine that replaces ended sessions", "", ENGINE="conn_guard.engine.postgresql", CONN_MAX_AGE=None),
    # The wrong place, the wrong spelling
    one("words in another order", "W105", MAX_CONNECTION_AGE=60),
    one("small letters", "W105", conn_max_age=60),
    one("health check in the singular", "W105 I123", CONN_MAX_AGE=60, CONN_HEALTH_CHECK=True),
    one("atomic request in the singular", "W105", ATOMIC_REQUEST=True),
    one("server side in one word", "W105", DISABLE_SERVERSIDE_CURSORS=True),
    one("a key of an engine's own", "", ENGINE="acme.postgres_backend", CONN_RETRY_SECONDS=3, SCHEMA="shop"),
    one("the age stands beside DATABASES", "W106", {**WSGI, "CONN_MAX_AGE": 60}),
    one("the checks stand beside DATABASES", "W106", {**WSGI, "CONN_HEALTH_CHECKS": True}, ENGINE=SQLITE),
    one("a variable that the alias uses", "", {**WSGI, "CONN_MAX_AGE": 120}, **KEPT),
    one("the age in OPTIONS", "E107", OPTIONS={"CONN_MAX_AGE": 60}),
    one("the age in OPTIONS, out of a URL's query", "E107", OPTIONS={"conn_max_age": 60, "sslmode": "require"}),
    one("the checks in a file's OPTIONS", "E107", ENGINE=SQLITE, OPTIONS={"CONN_HEALTH_CHECKS": True}),
    several("a replica in the wrong words", "E108", default={"ENGINE": POSTGRES}, repilca={"HOST": "replica"}),
    several("no database", ""),
    several("a default that is meant to be empty", "I123", default={}, users={"ENGINE": POSTGRES, "CONN_MAX_AGE": 60}),
    one("checks out of the environment, uncast", "W109", CONN_MAX_AGE=60, CONN_HEALTH_CHECKS="false"),
    one("atomic requests out of the environment", "W109", ATOMIC_REQUESTS="0"),
    # Django's pool
    pooled("a pool", pool=True),
    pooled("a pool of a size", pool={"min_size": 1, "max_size": 6, "timeout": 5}),
    pooled("a pool without health checks", "I124", pool={"min_size": 1, "max_size": 6}, CONN_HEALTH_CHECKS=False),
    pooled("a pool and an age", "E110", pool=True, CONN_MAX_AGE=60),
    pooled("a pool and no limit", "E110", pool=True, CONN_MAX_AGE=None),
    pooled("no pool and an age", pool=False, CONN_MAX_AGE=60),
    pooled("a pool out of a URL's query", "E111", pool="true"),
    pooled("a number for a pool", "E111", pool=8),
    pooled("an empty pool", "W112", pool={}),
    pooled("a max_size below the default min_size", "E113", pool={"max_size": 2}),
    pooled("a min_size of 0 without a max_size", "E113", pool={"min_size": 0}),
    pooled("the size out of the environment", "E113", pool={"min_size": 1, "max_size": "6"}),
    pooled("a max_size below the min_size", "E113", pool={"min_size": 6, "max_size": 3}),
    pooled("a size of another pool", "E114", pool={"pool_size": 5}),
    pooled("the driver's options in the pool's", "E114", pool={"kwargs": {"connect_timeout": 3}}),
    pooled("a check switched off by hand", "E114", pool={"min_size": 1, "check": None}),
    one("a pool for a file", "E115", ENGINE=SQLITE, OPTIONS={"pool": True}),
    one("a pool for MySQL", "E115", ENGINE=MYSQL, OPTIONS={"pool": {"max_size": 4}}),
    one("a pool beside OPTIONS", "W116", pool={"max_size": 4}),
    one("another engine's pool", "W116", POOL_OPTIONS={"POOL_SIZE": 5}),
    one("the engine of that pool", "", ENGINE="dj_db_conn_pool.backends.postgresql", POOL_OPTIONS={"POOL_SIZE": 5}),
    one("a pool for greenlets", "", ENGINE="django_db_geventpool.backends.postgresql_psycopg3", OPTIONS={"MAX_CONNS": 8}),
    one("a pool for greenlets with persistent connections", "W117", ENGINE="django_db_geventpool.backends.postgis", **KEPT),
    # OPTIONS
    one("a server's setting as the driver's", "E118", OPTIONS={"lock_timeout": 2000}),
    one("SQLite's option", "E118", OPTIONS={"timeout": 30}),
    one("MySQL's option", "E118", OPTIONS={"charset": "utf8mb4"}),
    one("the greenlet pool's option without its engine", "E118", OPTIONS={"MAX_CONNS": 8}),
    one("SQLite's option, in its place", "", ENGINE=SQLITE, OPTIONS={"timeout": 30}),
    one("options that libpq knows", "", OPTIONS={"sslmode": "prefer", "connect_timeout": 4, "keepalives_idle": 30}),
    one("an isolation level in words of SQL", "E119", OPTIONS={"isolation_level": "read committed"}),
    one("an isolation level by its number", "", OPTIONS={"isolation_level": 4}),
    # Who serves
    one("persistent under ASGI", "W120", ASGI, **KEPT),
    one("persistent under ASGI, unchecked", "W120 I123", ASGI, CONN_MAX_AGE=None),
    one("a file, persistent under ASGI", "W120", ASGI, ENGINE=SQLITE, CONN_MAX_AGE=60),
    one("a pool under ASGI", "", ASGI, CONN_HEALTH_CHECKS=True, OPTIONS={"pool": True}),
    one("both applications", "I121", {**WSGI, **ASGI}, **KEPT),
    one("both applications and nothing kept", "", {**WSGI, **ASGI}),
    one("persistent in development", "I131", {**WSGI, "DEBUG": True}, **KEPT),
    one("a file, persistent in development", "", {**WSGI, "DEBUG": True}, ENGINE=SQLITE, CONN_MAX_AGE=60),
    # Timeouts
    one("the timeout is below the age", "W125 I123", CONN_MAX_AGE=60, OPTIONS={"options": "-c idle_session_timeout=45s"}),
    one("the timeout is above the age", "I123", CONN_MAX_AGE=60, OPTIONS={"options": "-c idle_session_timeout=5min"}),
    one("the timeout is below the age, with health checks", "", OPTIONS={"options": "-c idle_session_timeout=45000"}, **KEPT),
    # Poolers
    one("transaction mode, by its address", "W126", **TRANSACTION_POOLER),
    one("transaction mode, by its name", "W126", HOST="ep-old-moon-7-pooler.us-east-2.aws.neon.tech"),
    one("the same provider without a pooler", "", HOST="ep-old-moon-7.us-east-2.aws.neon.tech"),
    one("transaction mode, declared", "W126", {**WSGI, "CONN_GUARD": {"POOLER": {"default": "transaction"}}}),
    one("transaction mode without cursors", "", DISABLE_SERVER_SIDE_CURSORS=True, **TRANSACTION_POOLER),
    one("session mode, by its address", "", **SESSION_POOLER, **KEPT),
    one("a pooler of unknown mode", "I127", HOST="pgbouncer.shop.internal"),
    one("a pooler of unknown mode, by its port", "I127", PORT=6432),
    one("a pooler of unknown mode without cursors", "", PORT=6432, DISABLE_SERVER_SIDE_CURSORS=True),
    one("session mode, declared", "", {**WSGI, "CONN_GUARD": {"POOLER": {"default": "session"}}}, PORT=6432),
    one("the port of a pooler at MySQL", "", ENGINE=MYSQL, PORT=6432),
    one("tenants behind a pooler", "I127 W128", ENGINE="django_tenants.postgresql_backend", HOST="pgbouncer"),
    one("tenants", "", ENGINE="django_tenants.postgresql_backend", **KEPT),
    one("tenants on conn_guard's engine", "W133", TENANTS, ENGINE="conn_guard.engine.postgresql"),
    one("tenants on conn_guard's engine, which replaces nothing", "", {**TENANTS, "CONN_GUARD": {"ENGINE_REPLACE": {"default": False}}}, ENGINE="conn_guard.engine.postgresql"),
    one("settings that pass no pooler", "I127 W129", HOST="pgbouncer", OPTIONS={"options": "-c lock_timeout=2s"}),
    one("settings for the server", "", OPTIONS={"options": "-c lock_timeout=2s -c search_path=shop"}),
    one("prepared statements behind a pooler", "W126 W130", OPTIONS={"prepare_threshold": 5}, **TRANSACTION_POOLER),
    one("prepared statements", "", OPTIONS={"prepare_threshold": 5}),
    # Other engines and aliases
    one("PostGIS", "", ENGINE="django.contrib.gis.db.backends.postgis", **KEPT),
    one("TimescaleDB", "", ENGINE="timescale.db.backends.postgresql", **KEPT),
    one("the engine of django-prometheus", "", ENGINE="django_prometheus.db.backends.postgresql", **KEPT),
    one("a name that the server cuts", "I132", OPTIONS={"application_name": "shop-" + "web" * 20}),
    one("a service file", "", HOST="", NAME="", USER="", OPTIONS={"service": "shop", "passfile": ".pgpass"}),
    several(
        "a replica that tests mirror",
        "",
        default={"ENGINE": POSTGRES, **KEPT},
        replica={"ENGINE": POSTGRES, "TEST": {"MIRROR": "default"}, **KEPT},
    ),
    several("the second alias is wrong", "E101", default={"ENGINE": POSTGRES}, log={"ENGINE": SQLITE, "CONN_MAX_AGE": "1"}),
    one("everything at once", "E107 E110 W105 W109 W120", ASGI, OPTIONS={"pool": True, "atomic_requests": 1}, CONN_MAX_AGE=5,
        CONN_HEALTH_CHECKS="yes", Conn_Max_Age=5),
]  # fmt: skip
