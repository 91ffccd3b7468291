"""The system checks that hold for a snapshot's server, in the words of ``check --deploy``."""

from __future__ import annotations

from collections.abc import Iterator

from django.core.checks import CheckMessage

from conn_guard.checks import rules
from conn_guard.checks.facts import ServerFacts
from conn_guard.checks.project import Project
from conn_guard.sessions.groups import Finding, Snapshot


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
    for alias in Project.current().aliases:
        if alias.name == snapshot.alias:
            facts = ServerFacts(
                alias=alias,
                backend_pid=0,
                client_pid=0,  # a pooler that isn't declared has been refused
                database=policy.database,
                database_limit=limits.database,
                role=policy.login_role,
                role_limit=None if snapshot.is_superuser else limits.roles.get(policy.login_role),
                is_superuser=snapshot.is_superuser,
                settings={name: each.value for name, each in (snapshot.settings or {}).items()},
            )
            yield from rules.messages("reaping", alias)
            yield from rules.messages("session", facts)
            yield from rules.messages("capacity", (facts,))
            yield from rules.messages("deployment", facts)
