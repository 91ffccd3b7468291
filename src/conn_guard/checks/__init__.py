"""What manage.py check and a starting server say of connections: this room holds the doors to the
checks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.core import checks
from django.core.checks import CheckMessage, Tags

if TYPE_CHECKING:
    from conn_guard.checks.project import Project

logger = logging.getLogger("conn_guard.checks")

_turns = {"startup"}


def register() -> None:
    """Register the checks with Django; a second call changes nothing."""
    checks.register(static_checks, "conn_guard")
    # Not with our tag: from Django 6.1 on, `check --tag conn_guard` would connect to every alias.
    checks.register(session_checks, Tags.database)
    checks.register(deployment_checks, Tags.database, deploy=True)


def watch() -> None:
    """Let a server process report at its start and once it shows what settings can't tell. It never
    raises.
    """
    try:
        from conn_guard.checks import runtime, startup

        startup.watch()
        runtime.watch()
    except Exception:
        logger.exception("This process is not watched.")


def run_static() -> list[CheckMessage]:
    """Return what the static checks find, less what SILENCED_SYSTEM_CHECKS names. Nothing is
    connected to.
    """
    return [message for message in find() if not message.is_silenced()]


def take_turn() -> bool:
    """Return whether this process has yet to say what the static checks find; true for one caller
    alone.
    """
    try:
        _turns.remove("startup")
    except KeyError:
        return False
    return True


def static_checks(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Return what every static rule finds; Django prints it and takes out what is silenced."""
    _turns.discard("startup")
    return find()


def session_checks(
    app_configs: Sequence[Any] | None = None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Return what the servers of *databases* say of the settings; nothing where that is None."""
    from conn_guard.checks import server

    return server.look_at_sessions(databases or ())


def deployment_checks(
    app_configs: Sequence[Any] | None = None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Return what the servers of *databases* say of the deployment; nothing where that is None."""
    from conn_guard.checks import server

    return server.look_at_deployment(databases or ())


def find(project: Project | None = None) -> list[CheckMessage]:
    """Return what every static rule finds in *project*, the running one by default."""
    # Imported when they are run: the table isn't needed by a process that runs no check.
    from conn_guard.checks import settings  # noqa: F401 - it fills the table
    from conn_guard.checks.project import Project
    from conn_guard.checks.table import RULES

    project = project or Project.current()
    subjects: dict[str, Sequence[object]] = {"project": [project], "alias": project.aliases}
    return [
        message
        for rule in RULES.values()
        for subject in subjects.get(rule.subject, ())
        for message in rule.messages(subject)
    ]
