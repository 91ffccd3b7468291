"""The static checks of this process: for a command, and for a server's start.

gunicorn, uvicorn and other servers run no system checks, so a starting server logs the findings.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Literal

from django.core.checks import ERROR, CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_started

from conn_guard.checks.project import Project
from conn_guard.checks.registry import Speaks, log

logger = logging.getLogger("conn_guard.checks")

# The rules that this process has not reported yet, by the time at which they speak.
_unreported: set[Speaks] = {"always", "at start"}


def watch() -> None:
    """Report at the first request where no middleware does; a second call changes nothing."""
    request_started.connect(_on_first_request, dispatch_uid="conn_guard.checks.startup")


def messages_for_command() -> list[CheckMessage]:
    """Return the messages of the static rules that speak here, and count them as reported.

    Rules that speak at a start are left out of every command but ``check``.
    """
    speak: list[Speaks] = ["always"] if _is_other_command() else ["always", "at start"]
    _unreported.difference_update(speak)
    return _messages(speak)


def report(*, context: Literal["middleware", "request"] = "middleware") -> None:
    """Log the findings of the static rules, once a process, as CHECK_AT_STARTUP asks.

    Skips findings that a command has printed, and everything in tests. Raises ImproperlyConfigured
    for an Error where CHECK_AT_STARTUP is "raise" and *context* is "middleware".
    """
    mode = Project.current().conn_guard.check_at_startup
    if mode is None or is_test():
        return
    taken = _take_unreported()
    messages = [message for message in _messages(taken) if not message.is_silenced()]
    for message in messages:
        log(message)
    errors = [
        f"{message.id}: {message.msg} {message.hint}"
        for message in messages
        if message.is_serious(ERROR)
    ]
    if errors and mode == "raise" and context == "middleware":
        # mod_wsgi imports an application that failed once more, in the same process.
        _unreported.update(taken)
        raise ImproperlyConfigured("\n".join(errors))


def is_test(sender: object = None) -> bool:
    """Return whether a test runner or Django's test client is at work."""
    if hasattr(sys.modules.get("django.core.mail"), "outbox") or _is_test_client(
        getattr(sender, "__module__", None)
    ):
        return True
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if _is_test_client(frame.f_globals.get("__name__")):
            return True
    return False


def _is_test_client(module: str | None) -> bool:
    return module == "django.test.client"


def _is_other_command() -> bool:
    """Return whether a management command other than Django's ``check`` runs the checks."""
    from django.core.management.base import BaseCommand
    from django.core.management.commands.check import Command

    # The outermost command counts: `manage.py test` calls `check`. In runserver's reloader thread
    # only BaseCommand.check is on the stack.
    codes = (BaseCommand.execute.__code__, BaseCommand.check.__code__)
    command = None
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code in codes:
            command = frame.f_locals.get("self")
    return command is not None and not isinstance(command, Command)


def _take_unreported() -> list[Speaks]:
    """Return the kinds of rules that are still to report; each is given to one thread alone."""
    taken: list[Speaks] = []
    while True:
        try:
            taken.append(_unreported.pop())
        except KeyError:
            return taken


def _messages(speak: Iterable[Speaks]) -> list[CheckMessage]:
    from conn_guard.checks import rules

    wanted = set(speak)
    return list(rules.static_messages(Project.current(), wanted)) if wanted else []


def _on_first_request(sender: object, **kwargs: object) -> None:
    """Receive ``request_started`` once; never raises, because the request is not at fault."""
    try:
        if is_test(sender):
            return
        request_started.disconnect(dispatch_uid="conn_guard.checks.startup")
        report(context="request")
    except Exception:
        logger.exception("The checks could not run.")
