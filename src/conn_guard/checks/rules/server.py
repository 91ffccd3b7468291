"""Rules about the server's settings and roles, and about a server that does not answer.

No rule here is an Error: a database-tagged Error would make ``migrate`` fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from conn_guard.checks.project import Alias
from conn_guard.checks.registry import Found, Rule
from conn_guard.text import printable, shown, sql_name

if TYPE_CHECKING:  # a process that asks no server needs no facts
    from conn_guard.checks.facts import NoAnswer, ServerFacts


def server_idle_timeout(facts: ServerFacts) -> Iterator[Found]:
    alias = facts.alias
    timeout_s = facts.settings.get("idle_session_timeout", 0) / 1000
    if 0 < timeout_s < alias.kept_seconds and _meets_ended_sessions(alias):
        yield (
            (
                f"The server of {alias} ends a session that is idle for {timeout_s:g} s and"
                f" {_keeping(alias)}, without CONN_HEALTH_CHECKS."
            ),
            "Write CONN_HEALTH_CHECKS = True.",
        )


def pooler_undeclared(facts: ServerFacts) -> Iterator[Found]:
    alias = facts.alias
    if facts.is_pooled and alias.name not in alias.project.conn_guard.pooler:
        yield (
            (
                f"{alias} goes through a pooler: the driver was given the pid {facts.client_pid}"
                f" and the server's is {facts.backend_pid}."
            ),
            declare_pooler(alias),
        )


def declare_pooler(alias: Alias) -> str:
    """Return the hint for a pooler that CONN_GUARD["POOLER"] does not name."""
    return (
        f"Declare its mode: CONN_GUARD['POOLER'] = {{{shown(alias.name)}: \"session\"}} or"
        ' "transaction".'
    )


def idle_in_transaction_unbounded(facts: ServerFacts) -> Iterator[Found]:
    if facts.settings.get("idle_in_transaction_session_timeout") == 0:
        yield (
            (
                f"The role {shown(facts.role)} of {facts.alias} has no"
                " idle_in_transaction_session_timeout."
            ),
            f"{_alter(facts)} SET idle_in_transaction_session_timeout = '5min';",
        )


def _alter(facts: ServerFacts) -> str:
    """Return the beginning of the SQL that changes the role."""
    return f"ALTER ROLE {printable(sql_name(facts.role))}"


def application_is_superuser(facts: ServerFacts) -> Iterator[Found]:
    if facts.is_superuser:
        yield (
            (
                f"The role {shown(facts.role)} of {facts.alias} is a superuser, so it can take the"
                " reserved slots."
            ),
            f"If another superuser exists, {_alter(facts)} NOSUPERUSER, after giving it the rights"
            " that it needs.",
        )


def reaps_healthy(alias: Alias) -> Iterator[Found]:
    reap_s = alias.project.conn_guard.reap_idle_for.total_seconds()
    if (
        alias.engine.may_be_postgres
        and reap_s <= alias.kept_seconds
        and _meets_ended_sessions(alias)
    ):
        yield (
            (
                f"CONN_GUARD['REAP_IDLE_FOR'] is {reap_s:g} s and {_keeping(alias)}, without"
                " CONN_HEALTH_CHECKS: the reaper would end healthy connections."
            ),
            "Write CONN_HEALTH_CHECKS = True, or take the engine conn_guard.engine.postgresql.",
        )


def could_not_ask(no_answer: NoAnswer) -> Iterator[Found]:
    alias, error = no_answer.alias, no_answer.error
    words = next(iter(str(error).strip().splitlines()), "")
    # libpq quotes a value that it can't read, and the server a setting that it refuses.
    told = "" if any(secret in words for secret in _secrets(alias)) else f": {words}"
    yield (
        (
            f"The server of {alias} could not be asked, so nothing is known about it"
            f" ({type(error).__name__}{told})."
        ),
        "Run manage.py check --database where the server answers.",
    )


def _meets_ended_sessions(alias: Alias) -> bool:
    """Return whether a request fails on a session that the server ended while it was idle."""
    return not alias.health_checks and not alias.replaces_ended_sessions


def _keeping(alias: Alias) -> str:
    if alias.pools:
        return f"the pool of {alias} keeps them for {alias.kept_seconds:g} s"
    return f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}"


def _secrets(alias: Alias) -> Iterator[str]:
    """Yield everything in the values of *alias* that may be a password, whole and in parts."""
    for key, value in (*alias.values.items(), *alias.options.items()):
        if (
            isinstance(value, str)
            and value
            and (_SECRET_KEY.search(str(key)) or "=" in value or "://" in value)
        ):
            yield value
            yield from re.findall(r"[^\s=:/@,;'\"]{4,}", value)


_SECRET_KEY = re.compile(r"pass|pwd|secret|key|token|service|dsn|conninfo", re.IGNORECASE)

RULES = (
    Rule(
        id="W301",
        slug="server-idle-timeout",
        subject="session",
        why="The server's idle_session_timeout ends sessions that Django will use again.",
        django=(
            "`OperationalError: terminating connection due to idle-session timeout` in the next"
            " request on that thread."
        ),
        cure=(
            "Write `CONN_HEALTH_CHECKS = True`, or a `CONN_MAX_AGE` below the timeout. A pool keeps"
            " `min_size` connections up to `max_lifetime` (an hour), whatever `max_idle` says."
        ),
        find=server_idle_timeout,
    ),
    Rule(
        id="I302",
        slug="pooler-undeclared",
        subject="session",
        why='The project connects through a pooler that CONN_GUARD["POOLER"] doesn\'t name.',
        django=(
            "Through a pooler the driver's pid (`connection.info.backend_pid`) differs from"
            " `pg_backend_pid()`, in every mode. In transaction mode server-side cursors, session"
            " settings and advisory locks reach the sessions of other clients."
        ),
        cure=(
            'Declare its mode: `CONN_GUARD = {"POOLER": {"default": "session"}}`, or'
            ' `"transaction"`.'
        ),
        find=pooler_undeclared,
    ),
    Rule(
        id="I305",
        slug="idle-in-transaction-unbounded",
        subject="deployment",
        why=(
            "A transaction that is left open holds its locks and stops vacuum until its session"
            " ends."
        ),
        django=(
            "Django ends a transaction with its request. A transaction that a thread, a shell or a"
            " crashed host leaves open stays open."
        ),
        cure="`ALTER ROLE app SET idle_in_transaction_session_timeout = '5min'`.",
        find=idle_in_transaction_unbounded,
    ),
    Rule(
        id="W307",
        slug="application-is-superuser",
        subject="deployment",
        why=(
            "The leak of a superuser takes the reserved slots too, so no administrator can log in"
            " to repair it."
        ),
        django=(
            "Django takes every slot that the server gives. The server gives the reserved slots to"
            " superusers, whatever `CONNECTION LIMIT` says."
        ),
        cure=(
            "Give the application a role of its own that is not a superuser. If the server has"
            " another superuser, `ALTER ROLE app NOSUPERUSER` is enough. Never take this right"
            " from the only superuser."
        ),
        find=application_is_superuser,
    ),
    Rule(
        id="W308",
        slug="reaps-healthy",
        subject="reaping",
        why="A reaper that acts before CONN_MAX_AGE or the pool's limit ends healthy connections.",
        django=(
            "Django keeps connections longer than `REAP_IDLE_FOR`. The reaper ends their sessions,"
            " and the next request on such a connection fails."
        ),
        cure=(
            "Write `CONN_HEALTH_CHECKS = True`. Or use conn_guard's engine, which replaces such a"
            " session unseen. Or keep connections for less than `REAP_IDLE_FOR`."
        ),
        find=reaps_healthy,
    ),
    Rule(
        id="I309",
        slug="could-not-ask",
        subject="no answer",
        why="The checks of the server need its answer; without it nothing is known.",
        django="Django meets the same error at its first query.",
        cure="Run `manage.py check --database ALIAS` where the server answers.",
        find=could_not_ask,
    ),
)
