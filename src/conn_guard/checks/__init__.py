"""The functions by which Django, the app and the commands run the system checks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from django.core import checks
from django.core.checks import CheckMessage, Tags

if TYPE_CHECKING:
    from conn_guard.checks.project import Alias

# Each function imports the rules itself: a process that runs no check does not need them.

logger = logging.getLogger("conn_guard.checks")


def register() -> None:
    """Register the checks with Django; a second call changes nothing."""
    checks.register(static_checks, "conn_guard")
    # Not with our tag: from Django 6.1 on, `check --tag conn_guard` would connect to every alias.
    checks.register(session_checks, Tags.database)
    checks.register(deployment_checks, Tags.database, deploy=True)


def watch() -> None:
    """Let a server process report at its start and while it serves; never raises."""
    try:
        from conn_guard.checks import runtime, startup

        startup.watch()
        runtime.watch()
    except Exception:
        logger.exception("This process is not watched.")


def static_checks(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Return the messages of the static rules; Django prints them, less what is silenced."""
    from conn_guard.checks import startup

    return startup.messages_for_command()


def session_checks(
    app_configs: Sequence[Any] | None = None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Return the messages about the sessions of *databases*; connects to each of them."""
    from conn_guard.checks import facts, rules

    messages: list[CheckMessage] = []
    for alias in _aliases(databases):
        messages += rules.messages("reaping", alias)
        answer = facts.ask(alias)
        if isinstance(answer, facts.NoAnswer):
            messages += rules.messages("no answer", answer)
        elif answer is not None:
            messages += rules.messages("session", answer)
    return messages


def deployment_checks(
    app_configs: Sequence[Any] | None = None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Return the messages about limits and roles of *databases*; connects to each of them.

    A server that can't be asked is left to the session checks, which run in the same command.
    """
    from conn_guard.checks import facts, rules

    answers = [facts.ask(alias) for alias in _aliases(databases)]
    known = tuple(each for each in answers if isinstance(each, facts.ServerFacts))
    messages = list(rules.messages("capacity", known))
    for each in known:
        messages += rules.messages("deployment", each)
    return messages


def reaping_messages(databases: Sequence[str]) -> Iterator[CheckMessage]:
    """Yield W308 about each of *databases* unless it is silenced; idle_reaper prints it."""
    for alias in _aliases(databases):
        if alias.kept_seconds:  # else W308 can't apply, and loading the rules takes time
            from conn_guard.checks import rules

            for message in rules.RULES["W308"].messages(alias):
                if not message.is_silenced():
                    yield message


def _aliases(databases: Sequence[str] | None) -> Iterator[Alias]:
    from conn_guard.checks.project import Project

    for alias in Project.current().aliases if databases else ():
        if alias.engine.may_be_postgres and alias.name in (databases or ()):
            yield alias
