"""Rules about CONN_MAX_AGE and about connections that outlive their request.

Source: each fact about Django was measured on Django 4.2 to 6.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from numbers import Real

from conn_guard.checks.project import YEAR_SECONDS, Alias
from conn_guard.checks.registry import Found, Rule
from conn_guard.text import shown

NOTE_SECONDS = 600
"""Up to this age a missing health check is an Info, above it a Warning.

Few servers and firewalls drop a connection that is idle for ten minutes.
"""


# The value of CONN_MAX_AGE


def max_age_type(alias: Alias) -> Iterator[Found]:
    if alias.age is not None and not isinstance(alias.age, Real):
        yield (
            f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}, not a number of seconds or None.",
            (
                "Write 60 for a minute, int(os.environ[...]) for a variable, or None without quotes"
                " for no limit."
            ),
        )


def max_age_bool(alias: Alias) -> Iterator[Found]:
    if alias.age is True:
        yield (
            f"{alias}['CONN_MAX_AGE'] is True, which is one second.",
            "Write a number of seconds, or None for no limit.",
        )


def max_age_negative(alias: Alias) -> Iterator[Found]:
    if isinstance(alias.age, Real) and alias.age < 0:
        yield (
            f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}, which acts as 0.",
            "Write None for no limit, or 0 to close after each request.",
        )


def max_age_absurd(alias: Alias) -> Iterator[Found]:
    age = alias.age
    if isinstance(age, Real) and not age <= YEAR_SECONDS:
        yield (
            f"{alias}['CONN_MAX_AGE'] is {shown(age)}, longer than a year.",
            "Write None for no limit, or a number of seconds.",
        )


# Connections that no later request uses


def without_persistence(alias: Alias) -> str:
    """Return the hint against persistence where no later request uses a connection again."""
    # A pool where Django has none is E115.
    pool = ", and OPTIONS['pool'] if connections are to stay open" if alias.can_pool else ""
    return f"Write 0 for CONN_MAX_AGE{pool}."


def asgi_persistent(alias: Alias) -> Iterator[Found]:
    if _leaks_under_asgi(alias):
        yield (
            (
                f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)} and the project is served by ASGI, "
                "where no later request finds the connection."
            ),
            without_persistence(alias),
        )


def _leaks_under_asgi(alias: Alias) -> bool:
    return alias.engine.connects and alias.persistent and alias.project.served_by == "ASGI"


def asgi_maybe_persistent(alias: Alias) -> Iterator[Found]:
    if alias.engine.connects and alias.persistent and alias.project.served_by == "either":
        yield (
            (
                f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}, which leaks if the project is"
                " served by ASGI."
            ),
            "Write 0 for CONN_MAX_AGE where an ASGI server serves the project.",
        )


def debug_persistent(alias: Alias) -> Iterator[Found]:
    if alias.project.get("DEBUG") and alias.engine.networked and alias.persistent:
        yield (
            (
                f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)} with DEBUG, and runserver never"
                " uses a connection twice."
            ),
            "Write 0 for CONN_MAX_AGE in development.",
        )


# Connections that the server may have dropped


def no_health_checks(alias: Alias) -> Iterator[Found]:
    if _is_unchecked(alias) and not _is_note(alias):
        yield _unchecked(alias, "Write CONN_HEALTH_CHECKS = True beside it.")


def no_health_checks_short(alias: Alias) -> Iterator[Found]:
    if not _is_unchecked(alias) or not _is_note(alias):
        return
    if _told_to_close(alias):
        yield _unchecked(alias, "Write 0 for CONN_MAX_AGE, as W120 says; 0 needs no health checks.")
    else:
        yield _unchecked(alias, "Write CONN_HEALTH_CHECKS = True beside it.")


def _is_unchecked(alias: Alias) -> bool:
    return (
        alias.engine.networked
        and alias.persistent
        and not alias.pool
        and not alias.health_checks
        and not alias.replaces_ended_sessions
    )


def _is_note(alias: Alias) -> bool:
    is_short = isinstance(alias.age, Real) and alias.age <= NOTE_SECONDS
    return is_short or _told_to_close(alias)


def _told_to_close(alias: Alias) -> bool:
    """Return whether W120 tells this project to write 0, so that no hint may say the opposite."""
    return _leaks_under_asgi(alias) and not alias.project.silences("W120")


def _unchecked(alias: Alias, hint: str) -> Found:
    return f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)} without CONN_HEALTH_CHECKS.", hint


def idle_timeout_shorter(alias: Alias) -> Iterator[Found]:
    if (
        not alias.engine.networked
        or not alias.persistent
        or alias.health_checks
        or alias.replaces_ended_sessions
    ):
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
    """Return the seconds that PostgreSQL reads in *setting*; 0 where it reads none."""
    match = re.fullmatch(
        r"'?([0-9]{1,12}(?:\.[0-9]{1,6})?)(?:\\?\s)*(us|ms|s|min|h|d|)'?", setting.strip()
    )
    return float(match[1]) * _UNIT_SECONDS[match[2]] if match else 0


_FIRST_REQUEST_FAILS = (
    "Without health checks the first request fails after the server, a firewall or a restart"
    " dropped the connection. With health checks no request fails."
)

RULES = (
    Rule(
        id="E101",
        slug="max-age-type",
        subject="alias",
        why=(
            "CONN_MAX_AGE is a number of seconds or None. Any other value breaks the first query of"
            " the process."
        ),
        django=(
            "Django adds the value to `time.monotonic()` when it connects: `TypeError` at the first"
            " query, on every engine. The start of the server and Django's own checks report"
            " nothing."
        ),
        cure=(
            "Write a number of seconds, or `None` without quotes for no limit. A variable of the"
            ' environment is a text: `int(os.environ["DB_CONN_MAX_AGE"])`,'
            ' `env.int("DB_CONN_MAX_AGE")`. A `timedelta` needs `.total_seconds()`. A trailing'
            " comma makes a tuple."
        ),
        find=max_age_type,
    ),
    Rule(
        id="W102",
        slug="max-age-bool",
        subject="alias",
        why='True reads like "persistent" and means one second.',
        django="Django counts with True as 1, so a connection lives for one second.",
        cure="Write the number of seconds that you mean, or `None` for no limit.",
        find=max_age_bool,
    ),
    Rule(
        id="W103",
        slug="max-age-negative",
        subject="alias",
        why='Other software reads a negative number as "no limit"; Django reads it as 0.',
        django="Django closes the connection after each request, as with 0.",
        cure="Write `None` for no limit, or `0` if you want to close after each request.",
        find=max_age_negative,
    ),
    Rule(
        id="W104",
        slug="max-age-absurd",
        subject="alias",
        why="No process lives that long, so the number means no limit, which readers don't expect.",
        django=(
            "Django keeps the connection until it fails. A number too large for a float raises"
            " `OverflowError` at the first query."
        ),
        cure="Write `None` for no limit, or a number of seconds below a year.",
        find=max_age_absurd,
    ),
    Rule(
        id="W120",
        slug="asgi-persistent",
        subject="alias",
        why="Under ASGI a persistent connection is never used twice, so each request leaves one.",
        django=(
            "Django runs each request in a thread of its own, which ends with the request. No later"
            " request finds the connection, and it stays open until the garbage collector finds it:"
            " 50 requests, 50 sessions. SQLite leaks file descriptors in the same way. Django's"
            " documentation says: disable persistent connections under ASGI."
        ),
        cure=(
            "Write `CONN_MAX_AGE = 0`. To keep connections open, write `OPTIONS ="
            ' {"pool": True}`: it needs PostgreSQL, Django 5.1 or newer and psycopg 3 with its'
            " pool."
        ),
        find=asgi_persistent,
    ),
    Rule(
        id="I121",
        slug="asgi-maybe-persistent",
        subject="alias",
        why="Settings with both applications don't show which server is used.",
        django="Under an ASGI server: the same as W120. Under a WSGI server: no fault.",
        cure="Under ASGI write `CONN_MAX_AGE = 0`. Under WSGI silence this check.",
        find=asgi_maybe_persistent,
    ),
    Rule(
        id="W122",
        slug="no-health-checks",
        subject="alias",
        why="Within more than ten minutes a server or a firewall may drop an idle connection.",
        django=_FIRST_REQUEST_FAILS,
        cure=(
            "Write `CONN_HEALTH_CHECKS = True`: Django then tests the connection once a request,"
            " which costs one round trip. conn_guard's engine needs no health check."
        ),
        find=no_health_checks,
    ),
    Rule(
        id="I123",
        slug="no-health-checks-short",
        subject="alias",
        why=(
            "Few servers drop an idle connection within ten minutes, but each restart of the server"
            " does."
        ),
        django=_FIRST_REQUEST_FAILS,
        cure=(
            "Write `CONN_HEALTH_CHECKS = True`, or silence this check where restarts are rare."
            " Where W120 speaks, write `CONN_MAX_AGE = 0` instead."
        ),
        find=no_health_checks_short,
    ),
    Rule(
        id="W125",
        slug="idle-timeout-shorter",
        subject="alias",
        why="The server ends the idle session before CONN_MAX_AGE is over.",
        django=(
            "`OperationalError: terminating connection due to idle-session timeout` in the next"
            " request on that thread."
        ),
        cure=(
            "Write `CONN_HEALTH_CHECKS = True`, or a `CONN_MAX_AGE` below the timeout. "
            "A bare number in `idle_session_timeout` is milliseconds."
        ),
        find=idle_timeout_shorter,
    ),
    Rule(
        id="I131",
        slug="debug-persistent",
        subject="alias",
        why="Under runserver a persistent connection is never used twice.",
        django=(
            "runserver starts a thread for each request, and the connection stays with that thread:"
            " 50 requests, 50 sessions."
        ),
        cure="Write `CONN_MAX_AGE = 0` in the settings for development.",
        find=debug_persistent,
    ),
)
