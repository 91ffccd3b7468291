"""What is wrong with the settings, seen without a connection: this room holds the static rules, one
function an id.

Facts about Django were run on 4.2 to 6.1, those about poolers on PgBouncer 1.18.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache, partial
from numbers import Real
from typing import Literal

import django

from conn_guard import conf
from conn_guard.checks.project import YEAR_SECONDS, Alias, Project
from conn_guard.checks.table import Found, rule
from conn_guard.sessions.stamp import NAME_BYTES
from conn_guard.text import shown

of_project = partial(rule, subject="project")
of_alias = partial(rule, subject="alias")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# CONN_GUARD


@of_project(
    "E001",
    "conn-guard-type",
    django="Django takes any value for a setting that it doesn't know.",
    cure="Write a dict: `CONN_GUARD = {}` is enough, and so is no `CONN_GUARD` at all.",
)
def conn_guard_type(project: Project) -> Iterator[Found]:
    """CONN_GUARD that is no dict can't be read at all, so every default would be in force
    unseen.
    """
    return _problems(project, "E001")


@of_project(
    "E002",
    "conn-guard-key",
    django="Nothing would tell that a misspelt key has no effect.",
    cure="Write the key as the hint spells it, or take it out.",
)
def conn_guard_key(project: Project) -> Iterator[Found]:
    """A key that conn_guard doesn't know is a setting that somebody believes in."""
    return _problems(project, "E002")


@of_project(
    "E003",
    "conn-guard-value",
    django=(
        "The middleware raises the same words as `ImproperlyConfigured` when a server starts;"
        " commands exit with 2."
    ),
    cure="Write the value as the hint shows it.",
)
def conn_guard_value(project: Project) -> Iterator[Found]:
    """A value that can't be read leaves its default in force."""
    return _problems(project, "E003")


def _problems(project: Project, id: Literal["E001", "E002", "E003"]) -> Iterator[Found]:  # noqa: A002
    for problem in conf.parse(project.get("CONN_GUARD", {}))[1]:
        if problem.id == id:
            yield problem.message, problem.hint


# CONN_MAX_AGE


@of_alias(
    "E101",
    "max-age-type",
    django=(
        "It adds the value to `time.monotonic()` when it connects: `TypeError` at the first query,"
        " on every engine. Starting the server and `manage.py check` say nothing."
    ),
    cure=(
        "Write a number of seconds, or `None` without quotes for no limit. A variable of the"
        ' environment is a text: `int(os.environ["DB_CONN_MAX_AGE"])`,'
        ' `env.int("DB_CONN_MAX_AGE")`. A `timedelta` needs `.total_seconds()`; a trailing comma'
        " makes a tuple."
    ),
)
def max_age_type(alias: Alias) -> Iterator[Found]:
    """CONN_MAX_AGE is a number of seconds or None; anything else breaks the first query of the
    process.
    """
    if alias.age is not None and not isinstance(alias.age, Real):
        yield (
            f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}, not a number of seconds or None.",
            (
                "Write 60 for a minute, int(os.environ[...]) for a variable, or None without quotes"
                " for no limit."
            ),
        )


@of_alias(
    "W102",
    "max-age-bool",
    django="It counts with True as 1, so a connection lives for one second.",
    cure="Write the number of seconds that you mean, or `None` for no limit.",
)
def max_age_bool(alias: Alias) -> Iterator[Found]:
    """True looks like "persistent, please" and means one second."""
    if alias.age is True:
        yield (
            f"{alias}['CONN_MAX_AGE'] is True, which is one second.",
            "Write a number of seconds, or None for no limit.",
        )


@of_alias(
    "W103",
    "max-age-negative",
    django=(
        "The end of the connection's life is past when it begins: it is closed after each request,"
        " as with 0."
    ),
    cure="Write `None` for no limit, or `0` if closing after each request is what you want.",
)
def max_age_negative(alias: Alias) -> Iterator[Found]:
    """A negative number, elsewhere a word for "no limit", is here the opposite of it."""
    if isinstance(alias.age, Real) and alias.age < 0:
        yield (
            f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}, which acts as 0.",
            "Write None for no limit, or 0 to close after each request.",
        )


@of_alias(
    "W104",
    "max-age-absurd",
    django=(
        "Its comparison with such an age never says that the time is up, so the connection stays"
        " until it fails. A number too large for a float raises `OverflowError` at the first query."
    ),
    cure="Write `None`, which says that there is no limit, or a number of seconds below a year.",
)
def max_age_absurd(alias: Alias) -> Iterator[Found]:
    """An age that no process reaches means "no limit", said in a way that nobody expects."""
    age = alias.age
    if isinstance(age, Real) and not age <= YEAR_SECONDS:
        yield (
            f"{alias}['CONN_MAX_AGE'] is {shown(age)}, longer than a year.",
            "Write None for no limit, or a number of seconds.",
        )


# Keys in the wrong place or the wrong spelling

KEYS = ("CONN_MAX_AGE", "CONN_HEALTH_CHECKS", "DISABLE_SERVER_SIDE_CURSORS", "ATOMIC_REQUESTS")
DEFAULTS: Mapping[str, object] = {
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": False,
    "DISABLE_SERVER_SIDE_CURSORS": False,
}
# Spellings that people use and whose letters alone are too far off.
SWAPPED = {"MAXCONNAGE": "CONN_MAX_AGE", "CONNAGE": "CONN_MAX_AGE"}
ALIKE = 0.85


@of_alias(
    "W105",
    "key-misspelt",
    django="It ignores keys that it doesn't know, so the setting keeps its default.",
    cure="Write the key as the hint spells it.",
)
def key_misspelt(alias: Alias) -> Iterator[Found]:
    """A misspelt key has no effect, and nothing says so."""
    for key in alias.values:
        meant = _meant(key)
        if meant is not None and key != meant:
            yield f"{alias} has the key {shown(key)}, which Django ignores.", f"Write {meant!r}."


def _meant(key: object) -> str | None:
    """Return which of Django's keys *key* is meant to be, if it is close to one."""
    return _nearest(key) if isinstance(key, str) else None


@lru_cache(maxsize=256)  # aliases have their keys in common
def _nearest(key: str) -> str | None:
    letters = _letters(key)
    if letters in SWAPPED:
        return SWAPPED[letters]
    for candidate in KEYS:
        if SequenceMatcher(None, letters, _letters(candidate)).ratio() >= ALIKE:
            return candidate
    return None


def _letters(key: str) -> str:
    return re.sub(r"[^A-Z]", "", key.upper()).replace("CONNECTION", "CONN")


@of_project(
    "W106",
    "key-at-top-level",
    django="It reads these keys from each alias of `DATABASES` only.",
    cure='Move it into the alias: `DATABASES["default"]["CONN_MAX_AGE"] = 60`.',
)
def key_at_top_level(project: Project) -> Iterator[Found]:
    """A setting beside DATABASES instead of inside has no effect.

    A variable that DATABASES uses is no mistake, so this speaks only where no alias has anything
    but the default."""
    alias = next((alias for alias in project.aliases if alias.connects), None)
    for key, default in DEFAULTS.items():
        value = project.get(key, default)
        if (
            alias
            and value != default
            and not any(_uses(each, key, default) for each in project.aliases)
        ):
            yield (
                f"The setting {key} is {shown(value)} beside DATABASES, where Django ignores it.",
                f"Write it into the alias: {alias}[{key!r}].",
            )


def _uses(alias: Alias, key: str, default: object) -> bool:
    """Return whether *alias* says anything under *key*, be it misspelt or in OPTIONS, which other
    checks tell.
    """
    if alias.values.get(key, default) != default:
        return True
    return any(_meant(each) == key and each != key for each in alias.values) or any(
        _meant(each) == key for each in alias.options
    )


@of_alias(
    "E107",
    "key-in-options",
    django=(
        "It hands OPTIONS to the driver: `ProgrammingError: invalid connection option` on"
        " PostgreSQL, `TypeError` on SQLite and MySQL, at the first query."
    ),
    cure=(
        "Move the key out of OPTIONS, beside it. dj-database-url puts `?conn_max_age=60` of a URL"
        " into OPTIONS: give it as the argument `conn_max_age=60`."
    ),
)
def key_in_options(alias: Alias) -> Iterator[Found]:
    """These four keys are Django's, and OPTIONS is the driver's."""
    for key in alias.options:
        if _is_djangos(key):
            yield (
                f"{alias}['OPTIONS'] has the key {shown(key)}, which the driver doesn't know.",
                f"Move it out of OPTIONS: {alias}[{str(key).upper()!r}].",
            )


def _is_djangos(key: object) -> bool:
    return isinstance(key, str) and key.upper() in KEYS


@of_alias(
    "E108",
    "alias-without-engine",
    django="It takes its dummy engine, which raises `ImproperlyConfigured` at the first query.",
    cure="Write the ENGINE, or the name of the alias as it is spelt elsewhere in DATABASES.",
)
def alias_without_engine(alias: Alias) -> Iterator[Found]:
    """An alias with values but no ENGINE is mostly a misspelt alias."""
    said = [key for key, value in alias.values.items() if not _is_djangos_default(key, value)]
    if not alias.connects and said:
        others = [str(other.name) for other in alias.project.aliases if other.connects]
        near = get_close_matches(str(alias.name), others, n=1)
        yield (
            f"{alias} has {', '.join(shown(key) for key in said)} and no ENGINE.",
            f"Did you mean the alias {near[0]!r}?" if near else 'Write its "ENGINE".',
        )


# What Django itself writes into every alias. Source:
# django.db.utils.ConnectionHandler.configure_settings.
_WRITTEN: Mapping[object, object] = {
    "ATOMIC_REQUESTS": False,
    "AUTOCOMMIT": True,
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": False,
    "OPTIONS": {},
    "TIME_ZONE": None,
    **dict.fromkeys(("NAME", "USER", "PASSWORD", "HOST", "PORT"), ""),
}
_WRITTEN_TEST = {"CHARSET": None, "COLLATION": None, "MIGRATE": True, "MIRROR": None, "NAME": None}


def _is_djangos_default(key: object, value: object) -> bool:
    if key == "TEST" and isinstance(value, Mapping):
        return all(
            name in _WRITTEN_TEST and each == _WRITTEN_TEST[name] for name, each in value.items()
        )
    return key == "ENGINE" or (key in _WRITTEN and value == _WRITTEN[key])


@of_alias(
    "W109",
    "flag-string",
    django="It asks whether the value is true, and every text but the empty one is.",
    cure='Write `True` or `False`, or cast: `env.bool("NAME")`, `config("NAME", cast=bool)`.',
)
def flag_string(alias: Alias) -> Iterator[Found]:
    """The text "False" switches a thing on."""
    for key in ("CONN_HEALTH_CHECKS", "DISABLE_SERVER_SIDE_CURSORS", "ATOMIC_REQUESTS"):
        value = alias.values.get(key)
        if isinstance(value, str):
            yield (
                f"{alias}[{key!r}] is the text {shown(value)}, which counts as {bool(value)}.",
                "Write True or False without quotes; cast a variable of the environment to bool.",
            )


# Pools

# Source: psycopg_pool.ConnectionPool.__init__, 3.1 to 3.3.
POOL_OPTIONS = _words(
    "close_returns connection_class max_idle max_lifetime max_size max_waiting min_size name"
    " num_workers reconnect_failed reconnect_timeout reset timeout"
)
POOL_OPTIONS_OF_DJANGO = frozenset({"check", "configure", "conninfo", "kwargs", "open"})


@of_alias(
    "E110",
    "pool-persistent",
    django=(
        "`ImproperlyConfigured: Pooling doesn't support persistent connections`, at the first query"
        " and not before."
    ),
    cure="Write `CONN_MAX_AGE = 0`; the pool keeps connections open by itself.",
)
def pool_persistent(alias: Alias) -> Iterator[Found]:
    """With a pool a connection goes back to it after each request, so CONN_MAX_AGE has to be 0."""
    if alias.pools and (alias.age is None or (isinstance(alias.age, Real) and alias.age != 0)):
        yield (
            f"{alias} has a pool and CONN_MAX_AGE {shown(alias.age)}.",
            "Write 0 for CONN_MAX_AGE; the pool keeps connections open by itself.",
        )


@of_alias(
    "E111",
    "pool-type",
    django="It unpacks the value as keyword arguments of the pool: `TypeError` at the first query.",
    cure=(
        'Write `True` or a dict such as `{"min_size": 2, "max_size": 4}`. '
        'django-environ turns `?pool=true` into the text `"true"`: set the pool in Python.'
    ),
)
def pool_type(alias: Alias) -> Iterator[Found]:
    """OPTIONS['pool'] is True or a dict of the pool's options."""
    if alias.pools and alias.pool is not True and not isinstance(alias.pool, Mapping):
        yield (
            f"{alias}['OPTIONS']['pool'] is {shown(alias.pool)}, neither True nor a dict.",
            'Write True, or a dict such as {"min_size": 2, "max_size": 4}.',
        )


@of_alias(
    "W112",
    "pool-empty",
    django="An empty dict counts as false, so there is no pool and every request connects anew.",
    cure="Write `True` for a pool with its defaults, or take the key out.",
)
def pool_empty(alias: Alias) -> Iterator[Found]:
    """An empty dict looks like "a pool with its defaults" and means "no pool"."""
    if (
        alias.takes_pool
        and alias.pool_unsupported is None
        and isinstance(alias.pool, Mapping)
        and not alias.pool
    ):
        yield (
            f"{alias}['OPTIONS']['pool'] is an empty dict, which switches the pool off.",
            "Write True for a pool with its defaults.",
        )


@of_alias(
    "E113",
    "pool-size",
    django="psycopg_pool raises `ValueError` or `TypeError` at the first query.",
    cure=(
        "Write whole numbers with `min_size` not above `max_size`. "
        "`min_size` is 4 where it isn't given, so a `max_size` below 4 needs a `min_size` too."
    ),
)
def pool_size(alias: Alias) -> Iterator[Found]:
    """The pool refuses sizes that contradict each other."""
    if not alias.pools or not alias.takes_pool:
        return
    least, most = alias.pool_sizes
    wrong = _wrong_sizes(least, most)
    if wrong:
        default = "" if "min_size" in alias.pool_options else " by default"
        yield (
            (
                f"{alias}['OPTIONS']['pool'] has min_size {shown(least)}{default} and max_size"
                f" {shown(most)}: {wrong}."
            ),
            (
                'Write whole numbers, min_size not above max_size, such as {"min_size": 2,'
                ' "max_size": 4}.'
            ),
        )


def _wrong_sizes(least: object, most: object) -> str:
    if not isinstance(least, int) or not isinstance(most, int):
        return "sizes are whole numbers"
    if least < 0:
        return "a size can't be negative"
    if most < least:
        return "max_size is below min_size"
    return "a pool that keeps none needs a max_size above 0" if most == 0 else ""


@of_alias(
    "E114",
    "pool-option",
    django=(
        "It passes the dict to `psycopg_pool.ConnectionPool` beside arguments of its own:"
        " `TypeError` at the first query. From 6.1 on, `check` may be a function."
    ),
    cure=(
        "Take the key out or write it as psycopg_pool does. For `check` set `CONN_HEALTH_CHECKS ="
        " True`; what belongs to the connection stands in OPTIONS itself."
    ),
)
def pool_option(alias: Alias) -> Iterator[Found]:
    """The pool takes psycopg_pool's options, less those that Django gives it itself."""
    if not alias.pools or not alias.takes_pool:
        return
    for key, value in alias.pool_options.items():
        if key == "check" and django.VERSION >= (6, 1) and callable(value):
            continue
        if key in POOL_OPTIONS_OF_DJANGO:
            hint = (
                "Write CONN_HEALTH_CHECKS = True."
                if key == "check"
                else "Take it out; OPTIONS has what the driver needs."
            )
            yield (
                (
                    f"{alias}['OPTIONS']['pool'] has {shown(key)}, which Django gives to the pool"
                    " itself."
                ),
                hint,
            )
        elif key not in POOL_OPTIONS:
            near = get_close_matches(str(key).lower(), POOL_OPTIONS, n=1)
            hint = (
                f"Did you mean {near[0]!r}?"
                if near
                else f"The keys are {', '.join(sorted(POOL_OPTIONS))}."
            )
            yield (
                f"{alias}['OPTIONS']['pool'] has {shown(key)}, which psycopg_pool doesn't know.",
                hint,
            )


@of_alias(
    "E115",
    "pool-unsupported",
    django=(
        "The driver gets an argument that it doesn't know: `TypeError` on SQLite and MySQL;"
        " `ImproperlyConfigured` with psycopg 2 and without psycopg_pool; `ProgrammingError` before"
        " Django 5.1. All at the first query."
    ),
    cure='Take the key out, or install psycopg 3 with its pool: `pip install "psycopg[pool]"`.',
)
def pool_unsupported(alias: Alias) -> Iterator[Found]:
    """Django pools with psycopg 3 and its psycopg_pool (and with Oracle's driver), and with nothing
    else.
    """
    asked = bool(alias.pool) or ("pool" in alias.options and not alias.takes_pool)
    if asked and alias.pool_unsupported is not None:
        yield (
            (
                f"{alias}['OPTIONS'] has 'pool' with the engine {shown(alias.engine)}:"
                f" {alias.pool_unsupported}."
            ),
            "Take 'pool' out of OPTIONS"
            + (
                ', or pip install "psycopg[pool]".'
                if alias.takes_pool and django.VERSION >= (5, 1)
                else "."
            ),
        )


@of_alias(
    "W116",
    "pool-misplaced",
    django="It ignores the key, so there is no pool.",
    cure=(
        'Write `OPTIONS = {"pool": {"min_size": 2, "max_size": 4}}`. `POOL_OPTIONS` belongs to the'
        " engine `dj_db_conn_pool`."
    ),
)
def pool_misplaced(alias: Alias) -> Iterator[Found]:
    """Django's pool is asked for in OPTIONS, not beside it."""
    for key in alias.values:
        if (
            alias.connects
            and alias.is_stock
            and isinstance(key, str)
            and key.upper() in ("POOL", "POOL_OPTIONS")
        ):
            yield (
                (
                    f"{alias} has the key {shown(key)}, which the engine {shown(alias.engine)}"
                    " ignores."
                ),
                f"Write it into OPTIONS: {alias}['OPTIONS']['pool'].",
            )


@of_alias(
    "W117",
    "third-party-pool-persistent",
    django=(
        "It keeps the connection with its thread or greenlet, so it never goes back to the engine's"
        " pool."
    ),
    cure="Write `CONN_MAX_AGE = 0`, as these engines' documentation asks.",
)
def third_party_pool_persistent(alias: Alias) -> Iterator[Found]:
    """A pool that gets nothing back runs dry or grows without bound."""
    if re.search(r"geventpool|postgrespool", alias.engine.lower()) and alias.persistent:
        yield (
            (
                f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)} with the engine"
                f" {shown(alias.engine)}, which has a pool."
            ),
            "Write 0 for CONN_MAX_AGE.",
        )


# What the driver takes

# Source: PQconndefaults() of libpq 14 to 18; what is newer than the installed one fails with its
# own clear words.
LIBPQ_OPTIONS = _words(
    "application_name channel_binding client_encoding connect_timeout dbname"
    " fallback_application_name gssdelegation gssencmode gsslib host hostaddr keepalives"
    " keepalives_count keepalives_idle keepalives_interval krbsrvname load_balance_hosts"
    " max_protocol_version min_protocol_version oauth_client_id oauth_client_secret oauth_issuer"
    " oauth_scope options passfile password port replication require_auth requirepeer requiressl"
    " scram_client_key scram_server_key service servicefile ssl_max_protocol_version"
    " ssl_min_protocol_version sslcert sslcertmode sslcompression sslcrl sslcrldir sslkey"
    " sslkeylogfile sslmode sslnegotiation sslpassword sslrootcert sslsni target_session_attrs"
    " tcp_user_timeout user"
)
DJANGO_OPTIONS = frozenset(
    {"assume_role", "cursor_factory", "isolation_level", "pool", "server_side_binding"}
)
PSYCOPG_OPTIONS = frozenset(
    {"autocommit", "conninfo", "context", "prepare_threshold", "row_factory"}
)
PSYCOPG2_OPTIONS = frozenset({"async", "async_", "connection_factory", "database", "dsn"})


@of_alias(
    "E118",
    "options-unknown",
    django=(
        "It hands OPTIONS to the driver: `ProgrammingError: invalid connection option`, at the"
        " first query."
    ),
    cure=(
        'A setting of the server goes into `OPTIONS["options"]`: `"-c statement_timeout=5000"`. '
        "An option of another engine goes out."
    ),
)
def options_unknown(alias: Alias) -> Iterator[Found]:
    """OPTIONS takes what libpq and the driver know; a server's setting, or an option of another
    engine, is neither.
    """
    if not alias.is_stock_postgres:
        return
    known = LIBPQ_OPTIONS | DJANGO_OPTIONS
    if alias.project.driver != "psycopg2":
        known |= PSYCOPG_OPTIONS
    if alias.project.driver != "psycopg":
        known |= PSYCOPG2_OPTIONS
    for key, value in alias.options.items():
        # Both drivers drop what is None.
        if key not in known and value is not None and not _is_djangos(key):
            near = get_close_matches(str(key).lower(), known, n=1, cutoff=ALIKE)
            hint = (
                f"Did you mean {near[0]!r}?"
                if near
                else (
                    "Take it out, or write a setting of the server as OPTIONS['options'] = '-c"
                    f" {_name(key)}=...'."
                )
            )
            yield (
                (
                    f"{alias}['OPTIONS'] has {shown(key)}, which is no connection option of"
                    " PostgreSQL."
                ),
                hint,
            )


def _name(key: object) -> str:
    return key if isinstance(key, str) and re.fullmatch(r"[a-z_.]{1,63}", key) else "name"


@of_alias(
    "E119",
    "isolation-level-type",
    django="`ImproperlyConfigured: Invalid transaction isolation level`, at the first query.",
    cure="Write a member: `from django.db.backends.postgresql.psycopg_any import IsolationLevel`.",
)
def isolation_level_type(alias: Alias) -> Iterator[Found]:
    """The isolation level is a member of IsolationLevel, or its number; the word that SQL has for
    it is not.
    """
    if alias.is_stock_postgres and "isolation_level" in alias.options:
        level = alias.options["isolation_level"]
        if not isinstance(level, Real) or level not in (1, 2, 3, 4):
            yield (
                f"{alias}['OPTIONS']['isolation_level'] is {shown(level)}, not an IsolationLevel.",
                (
                    "Write IsolationLevel.SERIALIZABLE; it is in"
                    " django.db.backends.postgresql.psycopg_any."
                ),
            )


# Persistent connections

NOTE_SECONDS = 600
"""Up to this age a missing health check is a note, above it a warning: few servers drop what rests
for ten minutes.
"""


@of_alias(
    "W120",
    "asgi-persistent",
    django=(
        "Each request runs in a thread of its own, which ends with it. Nobody finds its connection"
        " again, and it stays open until the garbage collector meets it: 50 requests, 50 sessions."
        " SQLite leaks file descriptors in the same way. Django's documentation: disable persistent"
        " connections under ASGI."
    ),
    cure='Write `CONN_MAX_AGE = 0`; to keep connections open, `OPTIONS = {"pool": True}`.',
)
def asgi_persistent(alias: Alias) -> Iterator[Found]:
    """Under ASGI a persistent connection is never used twice: it is a leak by configuration."""
    if alias.connects and alias.persistent and alias.project.served_by == "ASGI":
        yield (
            (
                f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)} and the project is served by ASGI, "
                "where no later request finds the connection."
            ),
            "Write 0 for CONN_MAX_AGE, and OPTIONS['pool'] if connections are to stay open.",
        )


@of_alias(
    "I121",
    "asgi-maybe-persistent",
    django=(
        "The same as W120 where an ASGI server serves the project, and nothing where a WSGI server"
        " does."
    ),
    cure="Under ASGI write `CONN_MAX_AGE = 0`; under WSGI silence this.",
)
def asgi_maybe_persistent(alias: Alias) -> Iterator[Found]:
    """Settings with both applications don't tell which one serves."""
    if alias.connects and alias.persistent and alias.project.served_by == "either":
        yield (
            (
                f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}, which leaks if the project is"
                " served by ASGI."
            ),
            "Write 0 for CONN_MAX_AGE where an ASGI server serves the project.",
        )


NO_HEALTH_CHECKS = (
    "Without a health check the first request after the server, a firewall or a restart dropped the"
    " connection fails; with it none does."
)


@of_alias(
    "W122",
    "no-health-checks",
    django=NO_HEALTH_CHECKS,
    cure=(
        "Write `CONN_HEALTH_CHECKS = True`: one cheap look at the connection per request."
        " conn_guard's engine needs none."
    ),
)
def no_health_checks(alias: Alias) -> Iterator[Found]:
    """A connection that is kept for more than ten minutes will meet a server that has dropped
    it.
    """
    if _is_unchecked(alias) and not _is_short(alias.age):
        yield _unchecked(alias)


@of_alias(
    "I123",
    "no-health-checks-short",
    django=NO_HEALTH_CHECKS,
    cure=(
        "Write `CONN_HEALTH_CHECKS = True`, or silence this where nothing drops a connection so"
        " soon."
    ),
)
def no_health_checks_short(alias: Alias) -> Iterator[Found]:
    """Few servers drop a connection within ten minutes, but a restart does."""
    if _is_unchecked(alias) and _is_short(alias.age):
        yield _unchecked(alias)


def _is_unchecked(alias: Alias) -> bool:
    return (
        alias.networked
        and alias.persistent
        and not alias.pool
        and not alias.health_checks
        and not alias.looks_before_use
    )


def _is_short(age: object) -> bool:
    return isinstance(age, Real) and age <= NOTE_SECONDS


def _unchecked(alias: Alias) -> Found:
    return (
        f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)} without CONN_HEALTH_CHECKS.",
        "Write CONN_HEALTH_CHECKS = True beside it.",
    )


@of_alias(
    "I124",
    "pool-no-health-checks",
    django=(
        "The pool hands out a connection that the server dropped, once; the request that gets it"
        " fails."
    ),
    cure=(
        "Write `CONN_HEALTH_CHECKS = True`: the pool then looks at each connection that it hands"
        " out."
    ),
)
def pool_no_health_checks(alias: Alias) -> Iterator[Found]:
    """A pool keeps connections for up to an hour, and a server or a firewall may drop them
    before.
    """
    if alias.pools and not alias.health_checks and not alias.looks_before_use:
        yield (
            f"{alias} has a pool without CONN_HEALTH_CHECKS.",
            "Write CONN_HEALTH_CHECKS = True beside OPTIONS.",
        )


@of_alias(
    "W125",
    "idle-timeout-shorter",
    django=(
        "`OperationalError: terminating connection due to idle-session timeout` in the next request"
        " on that thread."
    ),
    cure=(
        "Write `CONN_HEALTH_CHECKS = True`, or a `CONN_MAX_AGE` below the timeout. "
        "A bare number in `idle_session_timeout` is milliseconds."
    ),
)
def idle_timeout_shorter(alias: Alias) -> Iterator[Found]:
    """The server ends the session while Django still counts on the connection."""
    if not alias.networked or not alias.persistent or alias.health_checks or alias.looks_before_use:
        return
    timeout_s = _seconds(alias.startup_settings.get("idle_session_timeout", ""))
    if timeout_s and (alias.age is None or not alias.age <= timeout_s):  # type: ignore[operator]
        yield (
            (
                f"{alias}['OPTIONS']['options'] sets idle_session_timeout to {timeout_s:g} s, less"
                f" than CONN_MAX_AGE {shown(alias.age)}, without CONN_HEALTH_CHECKS."
            ),
            "Write CONN_HEALTH_CHECKS = True, or a CONN_MAX_AGE below the timeout.",
        )


_UNIT_SECONDS = {"us": 1e-6, "ms": 1e-3, "": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}


def _seconds(setting: str) -> float:
    """Return the seconds that PostgreSQL reads in *setting*, a bare number being milliseconds; 0
    where it reads none.
    """
    match = re.fullmatch(
        r"'?([0-9]{1,12}(?:\.[0-9]{1,6})?)(?:\\?\s)*(us|ms|s|min|h|d|)'?", setting.strip()
    )
    return float(match[1]) * _UNIT_SECONDS[match[2]] if match else 0


# Poolers


@of_alias(
    "W126",
    "cursors-txn-pooler",
    django=(
        "`.iterator()` outside a transaction declares a cursor on one server session and fetches"
        " from another: `cursor does not exist` in 10 of 10 runs; 0 of 10 with the cursors"
        " disabled."
    ),
    cure="Write `DISABLE_SERVER_SIDE_CURSORS = True`.",
)
def cursors_txn_pooler(alias: Alias) -> Iterator[Found]:
    """In transaction mode a pooler gives the server session away at each commit, and a server-side
    cursor with it.
    """
    if alias.pooler and alias.pooler[0] == "transaction" and not alias.cursors_disabled:
        yield (
            (
                f"{alias} goes through a pooler in transaction mode ({alias.pooler[1]}) with"
                " server-side cursors."
            ),
            "Write DISABLE_SERVER_SIDE_CURSORS = True.",
        )


@of_alias(
    "I127",
    "pooler-suspected",
    django=(
        "In transaction mode server-side cursors fail, as W126 tells; in session mode they work."
    ),
    cure=(
        'Say what it is: `CONN_GUARD = {"POOLER": {"default": "session"}}`, or `"transaction"`. '
        "`DISABLE_SERVER_SIDE_CURSORS = True` is right in both."
    ),
)
def pooler_suspected(alias: Alias) -> Iterator[Found]:
    """A host or port that is a pooler's by custom doesn't tell the pooler's mode."""
    if alias.pooler and alias.pooler[0] == "unknown" and not alias.cursors_disabled:
        yield (
            (
                f"{alias} seems to go through a pooler ({alias.pooler[1]}), in a mode that settings"
                " don't tell."
            ),
            (
                f"Say which: CONN_GUARD['POOLER'] = {{{shown(alias.name)}: \"session\"}} or"
                ' "transaction".'
            ),
        )


@of_alias(
    "W128",
    "tenants-pooler",
    django=(
        "The tenant's `search_path` is a setting of the server session. In transaction mode the"
        " next client gets that session: another tenant's rows are read and written."
    ),
    cure='Use session mode and say so: `CONN_GUARD = {"POOLER": {"default": "session"}}`.',
)
def tenants_pooler(alias: Alias) -> Iterator[Found]:
    """A schema per tenant and a pooler in transaction mode mix up tenants."""
    if "tenant" in alias.engine.lower() and alias.pooler and alias.pooler[0] != "session":
        yield (
            (
                f"{alias} sets the tenant's schema for the session and goes through a pooler"
                f" ({alias.pooler[1]})."
            ),
            (
                f"Use session mode, and say so: CONN_GUARD['POOLER'] = {{{shown(alias.name)}:"
                ' "session"}.'
            ),
        )


@of_alias(
    "W129",
    "pooler-startup-options",
    django=(
        "PgBouncer refuses the log-in (`unsupported startup parameter: options`), in both modes;"
        " told to ignore the parameter, it drops it, and the setting is silently not in force."
    ),
    cure="Set it on the server: `ALTER ROLE app SET statement_timeout = '5s'`.",
)
def pooler_startup_options(alias: Alias) -> Iterator[Found]:
    """What OPTIONS['options'] asks of the server at log-in doesn't pass a pooler."""
    asked = [
        name for name in alias.startup_settings if name != "cluster"
    ]  # --cluster= is an address, not a setting
    if asked and alias.pooler:
        yield (
            (
                f"{alias}['OPTIONS']['options'] sets {', '.join(asked)} at log-in and goes through"
                f" a pooler ({alias.pooler[1]})."
            ),
            f"Set it on the server: ALTER ROLE ... SET {asked[0]} = ...",
        )


@of_alias(
    "W130",
    "prepared-pooler",
    django=(
        "It prepares statements on one server session and runs them on another: 44 of 180 failed, 0"
        " with None."
    ),
    cure=(
        "Take `prepare_threshold` out; Django's own value is None. PgBouncer from 1.21 on can cope:"
        " silence this there."
    ),
)
def prepared_pooler(alias: Alias) -> Iterator[Found]:
    """A prepared statement belongs to the server session, which a pooler in transaction mode gives
    away.
    """
    threshold = alias.options.get("prepare_threshold")
    if (
        threshold is not None
        and alias.pooler
        and alias.pooler[0] != "session"
        and alias.project.driver != "psycopg2"
    ):
        yield (
            (
                f"{alias}['OPTIONS']['prepare_threshold'] is {shown(threshold)} and goes through a"
                f" pooler ({alias.pooler[1]})."
            ),
            "Take it out of OPTIONS, or write None.",
        )


# Notes


@of_alias(
    "I131",
    "debug-persistent",
    django=(
        "runserver starts a thread for each request, and the connection stays with it: 50 requests,"
        " 50 sessions."
    ),
    cure="Write `CONN_MAX_AGE = 0` in the settings for development.",
)
def debug_persistent(alias: Alias) -> Iterator[Found]:
    """Under runserver a persistent connection is never used twice."""
    if alias.project.get("DEBUG") and alias.networked and alias.persistent:
        yield (
            (
                f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)} with DEBUG, and runserver never"
                " uses a connection twice."
            ),
            "Write 0 for CONN_MAX_AGE in development.",
        )


@of_alias(
    "I132",
    "application-name-long",
    django=(
        f"The server keeps the first {NAME_BYTES} bytes, so two long names may become one in"
        " `pg_stat_activity`."
    ),
    cure="Write a shorter name.",
)
def application_name_long(alias: Alias) -> Iterator[Found]:
    """A cut name is no longer the name that one looks for, or protects."""
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


# MIDDLEWARE

GUARD = "conn_guard.middleware.ConnectionGuardMiddleware"
QUERYING = (
    "django.contrib.auth.",
    "django.contrib.flatpages.",
    "django.contrib.redirects.",
    "django.contrib.sites.",
)


@of_project(
    "I201",
    "middleware-absent",
    django=(
        "A connection that was opened in a request stays open until Django's `request_finished`,"
        " which a failed send skips."
    ),
    cure=f'Put `"{GUARD}"` first in MIDDLEWARE.',
)
def middleware_absent(project: Project) -> Iterator[Found]:
    """Without the middleware a connection ends with its thread or task, and not with its
    request.
    """
    if not _guards(project) and any(alias.connects for alias in project.aliases):
        yield f"MIDDLEWARE has no {GUARD!r}.", "Put it first in MIDDLEWARE."


@of_project(
    "W202", "middleware-twice", django="Both run for each request.", cure="Keep the first one."
)
def middleware_twice(project: Project) -> Iterator[Found]:
    """The second one can do nothing that the first one doesn't do later and better."""
    guards = _guards(project)
    if len(guards) > 1:
        yield (
            f"MIDDLEWARE has {' and '.join(repr(project.middleware[at]) for at in guards)}.",
            "Keep the first one alone.",
        )


@of_project(
    "W203",
    "middleware-late",
    django=(
        "A middleware before ours may query on the way in, so that the connection is open before"
        " ours looks, and on the way out, after ours has closed it: it is opened once more."
    ),
    cure=f'Put `"{GUARD}"` first in MIDDLEWARE.',
)
def middleware_late(project: Project) -> Iterator[Found]:
    """A connection that a middleware outside ours opens is outside our reach."""
    guards = _guards(project)
    before = project.middleware[: guards[0]] if guards else ()
    for path in before:
        if _queries(project, path):
            yield (
                (
                    f"MIDDLEWARE has {path!r}, which may query, before"
                    f" {project.middleware[guards[0]]!r}."
                ),
                "Put ours first.",
            )


def _guards(project: Project) -> list[int]:
    """Return where our middleware stands. A subclass is known by its name alone: nothing of the
    project is imported.
    """
    return [
        at
        for at, path in enumerate(project.middleware)
        if path.endswith("ConnectionGuardMiddleware")
    ]


def _queries(project: Project, path: str) -> bool:
    if path.startswith(QUERYING):
        return True
    if path.startswith("django.contrib.sessions."):
        engine = project.get("SESSION_ENGINE")
        if engine == "django.contrib.sessions.backends.cache":
            return _is_database_cache(project, project.get("SESSION_CACHE_ALIAS"))
        return engine in (
            "django.contrib.sessions.backends.db",
            "django.contrib.sessions.backends.cached_db",
        )
    if path.startswith("django.middleware.cache."):
        return _is_database_cache(project, project.get("CACHE_MIDDLEWARE_ALIAS"))
    return False


def _is_database_cache(project: Project, name: object) -> bool:
    caches = project.get("CACHES")
    cache = caches.get(name) if isinstance(caches, Mapping) else None
    return isinstance(cache, Mapping) and str(cache.get("BACKEND")).endswith(".DatabaseCache")
