"""What a starting server process says, because gunicorn, uvicorn and friends run no checks: this
room holds the report.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

from django.core.checks import ERROR
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_started

from conn_guard import checks
from conn_guard.checks.project import Project
from conn_guard.checks.table import log

logger = logging.getLogger("conn_guard.checks")


def watch() -> None:
    """Report at the first request where no middleware of ours is constructed; calling it again
    changes nothing.
    """
    request_started.connect(_on_first_request, dispatch_uid="conn_guard.checks.startup")


def report(*, context: Literal["middleware", "request"] = "middleware") -> None:
    """Log what the static checks find, once a process, as CONN_GUARD["CHECK_AT_STARTUP"] asks.

    Nothing where a command has printed them already, and nothing in tests. "raise" raises
    ImproperlyConfigured on an Error where a handler is being made, and never in a *context* of
    "request"."""
    mode = Project.current().conn_guard.check_at_startup
    if mode is None or is_test() or not checks.take_turn():
        return
    messages = checks.run_static()
    for message in messages:
        log(message)
    errors = [
        f"{message.id}: {message.msg} {message.hint}"
        for message in messages
        if message.is_serious(ERROR)
    ]
    if errors and mode == "raise" and context == "middleware":
        raise ImproperlyConfigured("\n".join(errors))


def is_test(sender: object = None) -> bool:
    """Return whether a test runner or Django's test client is at work: what it serves is no
    deployment.
    """
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


def _on_first_request(sender: object, **kwargs: object) -> None:
    """Receive ``request_started`` and never again. It never raises: the request isn't at fault."""
    try:
        if is_test(sender):
            return
        request_started.disconnect(dispatch_uid="conn_guard.checks.startup")
        report(context="request")
    except Exception:
        logger.exception("The checks could not run.")
