"""Rules about OPTIONS, which Django passes to the driver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from numbers import Real

from conn_guard.checks.project import Alias, is_key
from conn_guard.checks.registry import Found, Rule
from conn_guard.sessions.stamp import NAME_BYTES
from conn_guard.text import shown

# Source: PQconndefaults() of libpq 14 to 18. An older libpq reports an option that it doesn't know
# in clear words of its own.
LIBPQ = frozenset(
    [
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "dbname",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "gsslib",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_issuer",
        "oauth_scope",
        "options",
        "passfile",
        "password",
        "port",
        "replication",
        "require_auth",
        "requirepeer",
        "requiressl",
        "scram_client_key",
        "scram_server_key",
        "service",
        "servicefile",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcertmode",
        "sslcompression",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslkeylogfile",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "sslsni",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    ]
)
DJANGO = frozenset(
    {"assume_role", "cursor_factory", "isolation_level", "pool", "server_side_binding"}
)
PSYCOPG = frozenset({"autocommit", "conninfo", "context", "prepare_threshold", "row_factory"})
PSYCOPG2 = frozenset({"async", "async_", "connection_factory", "database", "dsn"})
ALIKE = 0.85


def options_unknown(alias: Alias) -> Iterator[Found]:
    if not alias.engine.is_stock_postgres:
        return
    known = LIBPQ | DJANGO
    if alias.project.driver != "psycopg2":
        known |= PSYCOPG
    if alias.project.driver != "psycopg":
        known |= PSYCOPG2
    for key, value in alias.options.items():
        # Both drivers drop a value of None.
        if key not in known and value is not None and not is_key(key):
            near = get_close_matches(str(key).lower(), known, n=1, cutoff=ALIKE)
            yield (
                (
                    f"{alias}['OPTIONS'] has {shown(key)}, which is not a connection option of"
                    " PostgreSQL."
                ),
                (
                    f"Did you mean {near[0]!r}?"
                    if near
                    else (
                        "Take it out, or write a setting of the server as OPTIONS['options'] = '-c"
                        f" {_name(key)}=...'."
                    )
                ),
            )


def _name(key: object) -> str:
    return key if isinstance(key, str) and re.fullmatch(r"[a-z_.]{1,63}", key) else "name"


def isolation_level_type(alias: Alias) -> Iterator[Found]:
    if alias.engine.is_stock_postgres and "isolation_level" in alias.options:
        level = alias.options["isolation_level"]
        if not isinstance(level, Real) or level not in (1, 2, 3, 4):
            yield (
                f"{alias}['OPTIONS']['isolation_level'] is {shown(level)}, not an IsolationLevel.",
                (
                    "Write IsolationLevel.SERIALIZABLE; it is in"
                    " django.db.backends.postgresql.psycopg_any."
                ),
            )


def application_name_long(alias: Alias) -> Iterator[Found]:
    name = alias.options.get("application_name") or alias.startup_settings.get("application_name")
    length = len(name.encode(errors="replace")) if isinstance(name, str) else 0
    if length > NAME_BYTES:
        yield (
            (
                f"{alias} has an application_name of {length} bytes, of which PostgreSQL keeps"
                f" {NAME_BYTES}."
            ),
            "Write a shorter name.",
        )


RULES = (
    Rule(
        id="E118",
        slug="options-unknown",
        subject="alias",
        why=(
            "OPTIONS accepts the options of libpq and of the driver; a setting of the server is"
            " neither. This check helps projects that move from SQLite or MySQL and keep `timeout`,"
            " `charset` or `init_command`, and those that write `statement_timeout` as an option."
        ),
        django=(
            "Django passes OPTIONS to the driver: `ProgrammingError: invalid connection option`, at"
            " the first query."
        ),
        cure=(
            'Write a setting of the server as `OPTIONS["options"]`: `"-c statement_timeout=5000"`. '
            "Remove an option of another engine."
        ),
        find=options_unknown,
    ),
    Rule(
        id="E119",
        slug="isolation-level-type",
        subject="alias",
        why=(
            "The isolation level is a member of IsolationLevel or its number. This check helps"
            " projects that write SQL's word for it, as Django's MySQL engine expects it."
        ),
        django="`ImproperlyConfigured: Invalid transaction isolation level`, at the first query.",
        cure=(
            "Write a member: `from django.db.backends.postgresql.psycopg_any import"
            " IsolationLevel`."
        ),
        find=isolation_level_type,
    ),
    Rule(
        id="I132",
        slug="application-name-long",
        subject="alias",
        why=(
            "The server cuts a long name, so a search or a protected name of idle_reaper no longer"
            " matches it."
        ),
        django=(
            f"The server keeps the first {NAME_BYTES} bytes, so two long names may become one in"
            " `pg_stat_activity`."
        ),
        cure="Write a shorter name.",
        find=application_name_long,
    ),
)
