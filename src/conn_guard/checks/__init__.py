"""What manage.py check says of connections: this room holds the registration of the checks and the way to run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core import checks
from django.core.checks import CheckMessage


def register() -> None:
    """Register the checks with Django; a second call changes nothing."""
    checks.register(static_checks, "conn_guard")


def run_static() -> list[CheckMessage]:
    """Return what the static checks find, without what SILENCED_SYSTEM_CHECKS names; nothing is connected to."""
    return [message for message in static_checks() if not message.is_silenced()]


def static_checks(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Return what every static rule finds in the project's settings."""
    from conn_guard.checks import settings  # noqa: F401 - fills the table
    from conn_guard.checks.project import Project
    from conn_guard.checks.table import RULES

    project = Project.current()
    subjects: dict[str, Sequence[object]] = {"project": [project], "alias": project.aliases}
    return [
        message
        for rule in RULES.values()
        for subject in subjects.get(rule.subject, ())
        for message in rule.messages(subject)
    ]
