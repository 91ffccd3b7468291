"""What the server says of the settings: this room holds the checks that connect, and none of them
is an Error.

Django runs them for the aliases that ``check --database`` names and before ``migrate``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.core.checks import CheckMessage
from django.db import connections

from conn_guard.checks import capacity
from conn_guard.checks.project import Alias, Project
from conn_guard.checks.table import RULES, Found, Subject, message_of, rule
from conn_guard.text import shown

if TYPE_CHECKING:
    from conn_guard.sessions.server import ApplicationSession


@dataclass(frozen=True)
class Seen:
    """An alias and what its server says."""

    alias: Alias
    session: ApplicationSession


def look_at_sessions(databases: Sequence[str]) -> list[CheckMessage]:
    """Return W301, I302 and W308 for the aliases in *databases*."""
    messages: list[CheckMessage] = []
    for alias in _named(databases):
        messages += RULES["W308"].messages(alias)
        try:
            seen = _look(alias)
        except Exception as error:  # noqa: BLE001 - an engine that can't be loaded or a server that is away is no crash
            messages.append(_unseen(alias, error))
        else:
            messages += _messages("session", seen) if seen else []
    return messages


def look_at_deployment(databases: Sequence[str]) -> list[CheckMessage]:
    """Return W303, W304, I305 and W307 for the aliases in *databases*.

    A server that doesn't answer is told by the session checks, which Django runs in the same
    command."""
    every = []
    for alias in _named(databases):
        with contextlib.suppress(Exception):
            every.append(_look(alias))
    seen = tuple(each for each in every if each)
    return [
        *_messages("capacity", seen),
        *(message for each in seen for message in _messages("deployment", each)),
    ]


def reaping_message(alias_name: str) -> CheckMessage | None:
    """Return W308 for an alias unless it is silenced: for the reaper, which says it once on
    stderr.
    """
    found = [message for alias in _named([alias_name]) for message in RULES["W308"].messages(alias)]
    return next((message for message in found if not message.is_silenced()), None)


def _named(databases: Sequence[str]) -> list[Alias]:
    return [
        alias
        for alias in Project.current().aliases
        if alias.may_be_postgres and alias.name in databases
    ]


def _look(alias: Alias) -> Seen | None:
    """Return what the server of *alias* says, or None where its engine turns out not to be
    PostgreSQL's.
    """
    connection = connections[str(alias.name)]
    if connection.vendor != "postgresql":
        return None
    # Only now: the module needs a driver for PostgreSQL.
    from conn_guard.sessions.server import application_session

    return Seen(alias, application_session(connection))


def _messages(subject: Subject, of: object) -> Iterator[CheckMessage]:
    for each in RULES.values():
        if each.subject == subject:
            yield from each.messages(of)


def _unseen(alias: Alias, error: Exception) -> CheckMessage:
    words = next(iter(str(error).strip().splitlines()), "")
    # libpq quotes what it can't read, and the server the settings that it refuses.
    told = "" if any(secret in words for secret in _secrets(alias)) else f": {words}"
    return message_of(
        "I302",
        f"The server of {alias} could not be asked, so nothing is known about it"
        f" ({type(error).__name__}{told}).",
        "Run manage.py check --database where the server answers.",
    )


def _secrets(alias: Alias) -> Iterator[str]:
    """Yield everything in the values of *alias* that could be a password, whole and in parts."""
    for key, value in (*alias.values.items(), *alias.options.items()):
        if (
            isinstance(value, str)
            and value
            and (_SECRET_KEY.search(str(key)) or "=" in value or "://" in value)
        ):
            yield value
            yield from re.findall(r"[^\s=:/@,;'\"]{4,}", value)


_SECRET_KEY = re.compile(r"pass|pwd|secret|key|token|service|dsn|conninfo", re.IGNORECASE)


# Rules


@rule(
    "W301",
    "server-idle-timeout",
    subject="session",
    django=(
        "`OperationalError: terminating connection due to idle-session timeout` in the next request"
        " on that thread."
    ),
    cure=(
        "Write `CONN_HEALTH_CHECKS = True`, or a `CONN_MAX_AGE` below the timeout. A pool keeps"
        " `min_size` connections up to `max_lifetime` (an hour), whatever `max_idle` says."
    ),
)
def server_idle_timeout(seen: Seen) -> Iterator[Found]:
    """The server's idle_session_timeout ends sessions that Django still counts on."""
    alias = seen.alias
    timeout_s = seen.session.settings.get("idle_session_timeout", 0) / 1000
    if (
        0 < timeout_s < alias.kept_seconds
        and not alias.health_checks
        and not alias.looks_before_use
    ):
        yield (
            (
                f"The server of {alias} ends sessions after {timeout_s:g} s at rest and"
                f" {_keeping(alias)}, without CONN_HEALTH_CHECKS."
            ),
            "Write CONN_HEALTH_CHECKS = True.",
        )


@rule(
    "I302",
    "pooler-undeclared",
    subject="session",
    django=(
        "Through a pooler the driver's pid (`connection.info.backend_pid`) differs from"
        " `pg_backend_pid()`, in every mode. In transaction mode server-side cursors, session"
        " settings and advisory locks land on other people's sessions."
    ),
    cure=(
        'Say what it is: `CONN_GUARD = {"POOLER": {"default": "session"}}`, or `"transaction"`. '
        "The same id says that a server could not be asked at all."
    ),
)
def pooler_undeclared(seen: Seen) -> Iterator[Found]:
    """A pooler stands between, and CONN_GUARD["POOLER"] doesn't say so."""
    if seen.session.is_pooled and seen.alias.name not in seen.alias.project.conn_guard.pooler:
        yield (
            (
                f"{seen.alias} goes through a pooler: the driver was given the pid"
                f" {seen.session.client_pid} and the server's is {seen.session.backend_pid}."
            ),
            (
                f"Say which mode: CONN_GUARD['POOLER'] = {{{shown(seen.alias.name)}: \"session\"}}"
                ' or "transaction".'
            ),
        )


@rule(
    "W308",
    "reaps-healthy",
    subject="reaping",
    django=(
        "It keeps connections longer than `REAP_IDLE_FOR`, so the reaper ends sessions that are in"
        " use, and the next request on such a connection fails."
    ),
    cure=(
        "Write `CONN_HEALTH_CHECKS = True`, take conn_guard's engine, which replaces such a session"
        " unseen, or keep connections for less than `REAP_IDLE_FOR`."
    ),
)
def reaps_healthy(alias: Alias) -> Iterator[Found]:
    """A reaper that is quicker than the project's own limit ends healthy connections."""
    reap_s = alias.project.conn_guard.reap_idle_for.total_seconds()
    if (
        alias.may_be_postgres
        and reap_s <= alias.kept_seconds
        and not alias.health_checks
        and not alias.looks_before_use
    ):
        yield (
            (
                f"CONN_GUARD['REAP_IDLE_FOR'] is {reap_s:g} s and {_keeping(alias)}, without"
                " CONN_HEALTH_CHECKS: the reaper would end healthy connections."
            ),
            "Write CONN_HEALTH_CHECKS = True, or take the engine conn_guard.engine.postgresql.",
        )


def _keeping(alias: Alias) -> str:
    if alias.pools:
        return f"the pool of {alias} keeps them for {alias.kept_seconds:g} s"
    return f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}"


@rule(
    "W303",
    "budget-tight",
    subject="capacity",
    django="It opens one connection per thread and alias and asks nobody whether there is room.",
    cure=(
        "Run fewer processes or threads, bound them with a pool, or raise `max_connections`. "
        "A rolling deployment runs old and new processes at once: leave room for both."
    ),
)
def budget_tight(every: tuple[Seen, ...]) -> Iterator[Found]:
    """A budget above 80 % of what the server has leaves no room for a deployment, a shell or a
    leak.
    """
    for sum_ in capacity.sums(every):
        if 0.8 < sum_.share <= 1:
            yield (
                sum_.text,
                "Leave a fifth of the slots free, or bound the sum with OPTIONS['pool'].",
            )


@rule(
    "W304",
    "budget-exceeded",
    subject="capacity",
    django=(
        "`FATAL: sorry, too many clients already`, or `too many connections for role`, for whoever"
        " comes last."
    ),
    cure=(
        "Run fewer processes or threads, bound them with a pool, or raise the limit that the sum"
        " names."
    ),
)
def budget_exceeded(every: tuple[Seen, ...]) -> Iterator[Found]:
    """A budget above what the server has is an outage that waits for a busy day."""
    for sum_ in capacity.sums(every):
        if sum_.share > 1:
            yield (
                sum_.text,
                (
                    "Run fewer processes or threads, bound the sum with OPTIONS['pool'], or raise"
                    " the limit."
                ),
            )


@rule(
    "I305",
    "idle-in-transaction-unbounded",
    subject="deployment",
    django=(
        "It ends a transaction with its request; what a thread, a shell or a crashed host leaves"
        " open stays open."
    ),
    cure="`ALTER ROLE app SET idle_in_transaction_session_timeout = '5min'`.",
)
def idle_in_transaction_unbounded(seen: Seen) -> Iterator[Found]:
    """A transaction that is left open holds its locks, and holds vacuum back, until somebody ends
    it.
    """
    if seen.session.settings.get("idle_in_transaction_session_timeout") == 0:
        yield (
            (
                f"The role {shown(seen.session.role)} of {seen.alias} has no"
                " idle_in_transaction_session_timeout."
            ),
            "ALTER ROLE ... SET idle_in_transaction_session_timeout = '5min'.",
        )


@rule(
    "W307",
    "application-is-superuser",
    subject="deployment",
    django="It takes any slot that the server gives, and a superuser gets the reserved ones too.",
    cure=(
        "Give the application a role of its own: `ALTER ROLE app NOSUPERUSER`. No limit binds a"
        " superuser."
    ),
)
def application_is_superuser(seen: Seen) -> Iterator[Found]:
    """A superuser's leak eats the slots that are reserved for the one who would repair it."""
    if seen.session.is_superuser:
        yield (
            (
                f"The role {shown(seen.session.role)} of {seen.alias} is a superuser, so it can"
                " take the reserved slots."
            ),
            "ALTER ROLE ... NOSUPERUSER, after giving it the rights that it needs.",
        )
