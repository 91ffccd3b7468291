"""The system checks that hold for a snapshot's server, in the words of ``check --deploy``."""

from __future__ import annotations

from collections.abc import Iterator

from django.core.checks import CheckMessage

from conn_guard.checks.project import Project
from conn_guard.checks.server import Seen
from conn_guard.checks.table import RULES
from conn_guard.sessions.groups import Finding, Snapshot
from conn_guard.sessions.server import ApplicationSession


def findings(snapshot: Snapshot) -> list[Finding]:
    """Return what the checks of the server find for the alias of *snapshot*, unless silenced."""
    return [
        Finding(str(each.id).removeprefix("conn_guard."), each.msg, each.hint or "")
        for each in _messages(snapshot)
        if not each.is_silenced()
    ]


def _messages(snapshot: Snapshot) -> Iterator[CheckMessage]:
    policy, limits = snapshot.policy, snapshot.limits
    if limits is None:
        return
    session = ApplicationSession(
        backend_pid=0,
        client_pid=0,  # a pooler that isn't declared has been refused
        database=policy.database,
        database_limit=limits.database,
        role=policy.login_role,
        role_limit=None if snapshot.is_superuser else limits.roles.get(policy.login_role),
        is_superuser=snapshot.is_superuser,
        settings={name: each.value for name, each in (snapshot.settings or {}).items()},
    )
    for alias in Project.current().aliases:
        if alias.name == snapshot.alias:
            seen = Seen(alias, session)
            subjects = {"session": seen, "deployment": seen, "capacity": (seen,), "reaping": alias}
            for rule in RULES.values():
                if rule.subject in subjects:
                    yield from rule.messages(subjects[rule.subject])
