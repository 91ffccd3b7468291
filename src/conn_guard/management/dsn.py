"""Turns a PostgreSQL URL, libpq's connection string or variables into the settings of an alias."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

SCHEMES = ("postgresql", "postgres", "postgis", "pgsql", "psql", "timescale", "timescalegis")
"""The schemes for PostgreSQL that libpq, django-environ and dj-database-url know."""
DJANGO_ONLY = {
    "assume_role",
    "atomic_requests",
    "autocommit",
    "conn_health_checks",
    "conn_max_age",
    "disable_server_side_cursors",
    "isolation_level",
    "pool",
    "server_side_binding",
}
"""Parameters of a project's URL that Django reads; libpq would refuse the whole URL for one."""
DRIVER = "Install a driver: pip install 'conn-guard[cli]'."

_KEYS = {"dbname": "NAME", "host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
_SCHEME = re.compile(r"^([a-z][a-z0-9.-]*)(?:\+[a-z0-9]+)?://", re.IGNORECASE)


class DSNError(ValueError):
    """A DSN that can't be read; the text says in one line what to write, and shows none of it."""


def alias_settings(dsn: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the settings of an alias for *dsn*; libpq's variables fill in what it leaves out.

    Raises DSNError, and ImportError without a driver. Source of the defaults: PostgreSQL's
    documentation, "Environment Variables" and "The Connection Service File" of libpq.
    """
    given = _read(dsn)
    settings = {name: given.pop(key, "") for key, name in _KEYS.items()}
    if service := given.get("service") or environ.get("PGSERVICE"):
        given["service"] = service
    elif not settings["NAME"]:
        # Django would take the database postgres, or refuse.
        settings["NAME"] = environ.get("PGDATABASE") or settings["USER"] or _user(environ)
    return {"ENGINE": "django.db.backends.postgresql", **settings, "OPTIONS": given}


def holds_password(dsn: str) -> bool:
    """Return whether *dsn* holds a password; raises as alias_settings() does."""
    return not {"password", "sslpassword"}.isdisjoint(_read(dsn))


def _read(dsn: str) -> dict[str, Any]:
    scheme = _SCHEME.match(dsn)
    if scheme:
        if scheme[1].lower() not in SCHEMES:
            raise DSNError("it names no PostgreSQL. Write postgresql://USER@HOST:PORT/DATABASE.")
        dsn = "postgresql://" + _without_django_only(dsn[scheme.end() :])
    parse, refusal = _libpq()
    try:
        read = {key: str(value) for key, value in parse(dsn).items() if value is not None}
    except (refusal, ValueError):
        read = None
    # libpq's own messages quote the part that it can't read. Where the password has an "@", ":" or
    # "/" in it, that part is a piece of the password.
    is_split = scheme and dsn.partition("?")[0].count("@") > 1
    if read is None or is_split or re.search(r"[^0-9,]", read.get("port", "")):
        raise DSNError(
            "it can't be read. Write postgresql://USER@HOST:PORT/DATABASE, with % codes for"
            " special characters, or host=HOST dbname=DATABASE."
        )
    return read


def _libpq() -> tuple[Any, type[Exception]]:
    """Return libpq's reader of connection strings by the driver that Django takes, and its error.

    Raises ImportError.
    """
    for driver, module, reader in (
        ("psycopg", "psycopg.conninfo", "conninfo_to_dict"),
        ("psycopg2", "psycopg2.extensions", "parse_dsn"),
    ):
        try:
            refusal = import_module(driver).ProgrammingError
            return getattr(import_module(module), reader), refusal
        except ImportError:
            continue
    raise ImportError(DRIVER)


def _without_django_only(rest: str) -> str:
    address, mark, query = rest.partition("?")
    pairs = query.split("&")
    kept = [pair for pair in pairs if pair.partition("=")[0].lower() not in DJANGO_ONLY]
    return f"{address}{mark}{'&'.join(kept)}"


def _user(environ: Mapping[str, str]) -> str:
    try:
        return environ.get("PGUSER") or getpass.getuser()
    except (ImportError, KeyError, OSError):
        return "postgres"
