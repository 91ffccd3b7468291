"""Projects made of settings for the tests of the checks, and the findings about them."""

from __future__ import annotations

from types import SimpleNamespace

import django
import pytest
from django.core import checks as django_checks
from django.core.checks import CheckMessage
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from conn_guard.checks import rules
from conn_guard.checks.project import Project

POSTGRES = "django.db.backends.postgresql"
GUARD = "conn_guard.middleware.ConnectionGuardMiddleware"
LEVELS = {django_checks.ERROR: "E", django_checks.WARNING: "W", django_checks.INFO: "I"}
CHECKED = {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}

CAN_POOL = django.VERSION >= (5, 1) and is_psycopg3

pools = pytest.mark.skipif(not CAN_POOL, reason="Django pools from 5.1 on, with psycopg 3")


def project(driver="psycopg", **settings) -> Project:
    """Return a project of these settings, with the middleware and psycopg 3 by default."""
    made = Project(SimpleNamespace(**{"MIDDLEWARE": [GUARD], **settings}))
    made.__dict__["driver"] = driver
    return made


def alias(**values) -> dict[str, object]:
    """Return settings with one alias of Django's PostgreSQL engine and these values."""
    return {"DATABASES": {"default": {"ENGINE": POSTGRES, "NAME": "app", "HOST": "db", **values}}}


def found(settings, **others) -> list[CheckMessage]:
    """Return the messages of the static checks about a project of these settings."""
    return list(rules.static_messages(project(**settings, **others)))


def ids(settings, **others) -> set[str]:
    """Return the ids that the static checks find in a project of these settings."""
    return {message.id.removeprefix("conn_guard.") for message in found(settings, **others)}


def said(id, settings, **others) -> str:  # noqa: A002
    """Return message and hint of the only finding *id*, after a look at its level and address."""
    (message,) = [each for each in found(settings, **others) if each.id == f"conn_guard.{id}"]
    assert LEVELS[message.level] == id[0]
    hint, address = message.hint.split(" See ")
    assert address == f"docs/reference/checks.md#{id.lower()}"
    hint, _, command = hint.partition(" For more, type ")
    assert command == f"conn-guard check {id}."
    return f"{message.msg} HINT: {hint}"
