"""Rules about pools: Django's OPTIONS["pool"] and those of other engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from numbers import Real

import django

from conn_guard.checks.project import Alias
from conn_guard.checks.registry import Found, Rule
from conn_guard.text import shown

# Source: psycopg_pool.ConnectionPool.__init__, 3.1 to 3.3.
OPTIONS = frozenset(
    [
        "close_returns",
        "connection_class",
        "max_idle",
        "max_lifetime",
        "max_size",
        "max_waiting",
        "min_size",
        "name",
        "num_workers",
        "reconnect_failed",
        "reconnect_timeout",
        "reset",
        "timeout",
    ]
)
# Source: django.db.backends.postgresql.base.DatabaseWrapper.pool.
GIVEN_BY_DJANGO = frozenset({"check", "configure", "conninfo", "kwargs", "open"})


def pool_persistent(alias: Alias) -> Iterator[Found]:
    if alias.pools and (alias.age is None or (isinstance(alias.age, Real) and alias.age != 0)):
        yield (
            f"{alias} has a pool and CONN_MAX_AGE {shown(alias.age)}.",
            "Write 0 for CONN_MAX_AGE; the pool keeps connections open by itself.",
        )


def pool_type(alias: Alias) -> Iterator[Found]:
    if alias.pools and alias.pool is not True and not isinstance(alias.pool, Mapping):
        yield (
            f"{alias}['OPTIONS']['pool'] is {shown(alias.pool)}, neither True nor a dict.",
            'Write True, or a dict such as {"min_size": 2, "max_size": 4}.',
        )


def pool_empty(alias: Alias) -> Iterator[Found]:
    if (
        alias.engine.takes_pool
        and alias.pool_unsupported is None
        and isinstance(alias.pool, Mapping)
        and not alias.pool
    ):
        yield (
            f"{alias}['OPTIONS']['pool'] is an empty dict, which switches the pool off.",
            "Write True for a pool with its defaults.",
        )


def pool_size(alias: Alias) -> Iterator[Found]:
    if not alias.pools or not alias.engine.takes_pool:
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
    return "a pool with min_size 0 needs a max_size above 0" if most == 0 else ""


def pool_option(alias: Alias) -> Iterator[Found]:
    if not alias.pools or not alias.engine.takes_pool:
        return
    for key, value in alias.pool_options.items():
        if key == "check" and django.VERSION >= (6, 1) and callable(value):
            continue
        if key in GIVEN_BY_DJANGO:
            yield (
                (
                    f"{alias}['OPTIONS']['pool'] has {shown(key)}, which Django gives to the pool"
                    " itself."
                ),
                (
                    "Write CONN_HEALTH_CHECKS = True."
                    if key == "check"
                    else "Take it out; OPTIONS has what the driver needs."
                ),
            )
        elif key not in OPTIONS:
            near = get_close_matches(str(key).lower(), OPTIONS, n=1)
            yield (
                f"{alias}['OPTIONS']['pool'] has {shown(key)}, which psycopg_pool doesn't know.",
                (
                    f"Did you mean {near[0]!r}?"
                    if near
                    else f"The keys are {', '.join(sorted(OPTIONS))}."
                ),
            )


def pool_unsupported(alias: Alias) -> Iterator[Found]:
    if (alias.pool or _passes_pool_on(alias)) and alias.pool_unsupported is not None:
        can_install = alias.engine.takes_pool and django.VERSION >= (5, 1)
        yield (
            (
                f"{alias}['OPTIONS'] has 'pool' with the engine {shown(alias.engine.path)}:"
                f" {alias.pool_unsupported}."
            ),
            "Take 'pool' out of OPTIONS"
            + (', or pip install "psycopg[pool]".' if can_install else "."),
        )


def _passes_pool_on(alias: Alias) -> bool:
    """Return whether the key "pool" reaches a driver, which doesn't know it, whatever its value."""
    if alias.engine.is_stock_postgres:
        # Django pops the key from 5.1 on. Both drivers drop a value of None.
        return django.VERSION < (5, 1) and alias.pool is not None
    return "pool" in alias.options and not alias.engine.takes_pool


def pool_misplaced(alias: Alias) -> Iterator[Found]:
    for key in alias.values:
        if (
            alias.engine.connects
            and alias.engine.is_stock
            and isinstance(key, str)
            and key.upper() in ("POOL", "POOL_OPTIONS")
        ):
            yield (
                (
                    f"{alias} has the key {shown(key)}, which the engine"
                    f" {shown(alias.engine.path)} ignores."
                ),
                (
                    f"Write it into OPTIONS: {alias}['OPTIONS']['pool']."
                    if alias.can_pool
                    else f"Take it out: {alias.pool_unsupported or 'it has no effect'}."
                ),
            )


def third_party_pool_persistent(alias: Alias) -> Iterator[Found]:
    if alias.engine.has_thread_bound_pool and alias.persistent:
        yield (
            (
                f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)} with the engine"
                f" {shown(alias.engine.path)}, which has a pool."
            ),
            "Write 0 for CONN_MAX_AGE.",
        )


def pool_no_health_checks(alias: Alias) -> Iterator[Found]:
    if alias.pools and not alias.health_checks and not alias.replaces_ended_sessions:
        yield (
            f"{alias} has a pool without CONN_HEALTH_CHECKS.",
            "Write CONN_HEALTH_CHECKS = True beside OPTIONS.",
        )


RULES = (
    Rule(
        id="E110",
        slug="pool-persistent",
        subject="alias",
        why="With a pool each connection returns to it after the request: CONN_MAX_AGE must be 0.",
        django=(
            "`ImproperlyConfigured: Pooling doesn't support persistent connections`, at the first"
            " query and not before."
        ),
        cure="Write `CONN_MAX_AGE = 0`; the pool keeps connections open by itself.",
        find=pool_persistent,
    ),
    Rule(
        id="E111",
        slug="pool-type",
        subject="alias",
        why="OPTIONS['pool'] is True or a dict of the pool's options.",
        django=(
            "Django unpacks the value as keyword arguments of the pool: `TypeError` at the first"
            " query."
        ),
        cure=(
            'Write `True` or a dict such as `{"min_size": 2, "max_size": 4}`. '
            'django-environ turns `?pool=true` into the text `"true"`: set the pool in Python.'
        ),
        find=pool_type,
    ),
    Rule(
        id="W112",
        slug="pool-empty",
        subject="alias",
        why='An empty dict reads like "a pool with its defaults" and means "no pool".',
        django="An empty dict counts as false: there is no pool, and every request connects anew.",
        cure="Write `True` for a pool with its defaults, or remove the key.",
        find=pool_empty,
    ),
    Rule(
        id="E113",
        slug="pool-size",
        subject="alias",
        why="The pool refuses sizes that contradict each other.",
        django="psycopg_pool raises `ValueError` or `TypeError` at the first query.",
        cure=(
            "Write whole numbers with `min_size` not above `max_size`. "
            "`min_size` is 4 by default, so a `max_size` below 4 needs a `min_size` too."
        ),
        find=pool_size,
    ),
    Rule(
        id="E114",
        slug="pool-option",
        subject="alias",
        why="The pool accepts psycopg_pool's options, except those that Django sets itself.",
        django=(
            "Django passes the dict to `psycopg_pool.ConnectionPool` beside arguments of its own:"
            " `TypeError` at the first query. From 6.1 on, `check` may be a function."
        ),
        cure=(
            "Remove the key, or spell it as psycopg_pool does. For `check` write"
            " `CONN_HEALTH_CHECKS = True`. Options of the connection belong in OPTIONS itself."
        ),
        find=pool_option,
    ),
    Rule(
        id="E115",
        slug="pool-unsupported",
        subject="alias",
        why="Django has a pool for PostgreSQL with psycopg 3 and psycopg_pool, and for Oracle.",
        django=(
            "The driver gets an argument that it doesn't know: `TypeError` on SQLite and MySQL;"
            " `ImproperlyConfigured` with psycopg 2 and without psycopg_pool; `ProgrammingError`"
            " before Django 5.1. All at the first query."
        ),
        cure=(
            "Remove the key, or install psycopg 3 with its pool:"
            ' `pip install "psycopg[pool]"` (Django 5.1 or newer).'
        ),
        find=pool_unsupported,
    ),
    Rule(
        id="W116",
        slug="pool-misplaced",
        subject="alias",
        why="Django reads the pool from OPTIONS, not from a key beside it.",
        django="Django ignores the key, so there is no pool.",
        cure=(
            'Write `OPTIONS = {"pool": {"min_size": 2, "max_size": 4}}`. `POOL_OPTIONS` belongs to'
            " the engine `dj_db_conn_pool`."
        ),
        find=pool_misplaced,
    ),
    Rule(
        id="W117",
        slug="third-party-pool-persistent",
        subject="alias",
        why="A pool that gets no connection back becomes empty or grows without limit.",
        django=(
            "Django keeps the connection with its thread or greenlet, so it never returns to the"
            " engine's pool."
        ),
        cure="Write `CONN_MAX_AGE = 0`, as the documentation of these engines says.",
        find=third_party_pool_persistent,
    ),
    Rule(
        id="I124",
        slug="pool-no-health-checks",
        subject="alias",
        why=(
            "A pool keeps connections for up to an hour, and a server or a firewall may drop them"
            " before."
        ),
        django=(
            "The pool hands out a connection that the server dropped, once. The request that gets"
            " it fails."
        ),
        cure=(
            "Write `CONN_HEALTH_CHECKS = True`: the pool then tests each connection before it hands"
            " it out."
        ),
        find=pool_no_health_checks,
    ),
)
