"""What manage.py check says of connections: this room holds the registration of the checks and the way to run them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.core import checks
from django.core.checks import CheckMessage


def register() -> None:
    """Register the checks with Django; a second call changes nothing."""
    checks.register(static_checks, "conn_guard")


def run_static() -> list[CheckMessage]:
    """Return what the static checks find, less what SILENCED_SYSTEM_CHECKS names. Nothing is connected to."""
    return [message for message in _static() if not message.is_silenced()]


def static_checks(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Return what every static rule finds: Django's door to :func:`run_static`, which takes out what is silenced itself."""
    return list(_static())


def _static() -> Iterator[CheckMessage]:
    from conn_guard.checks import settings  # noqa: F401 - it fills the table
    from conn_guard.checks.project import Project
    from conn_guard.checks.table import RULES

    project = Project.current()
    subjects: dict[str, Sequence[object]] = {"project": [project], "alias": project.aliases}
    for rule in RULES.values():
        for subject in subjects.get(rule.subject, ()):
            yield from rule.messages(subject)
