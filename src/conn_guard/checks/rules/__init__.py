"""Every rule, and the messages of all rules about one subject."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from django.core.checks import CheckMessage

from conn_guard.checks.project import Project
from conn_guard.checks.registry import Rule, Speaks, Subject, table
from conn_guard.checks.rules import (
    capacity,
    conn_guard,
    keys,
    middleware,
    options,
    persistence,
    poolers,
    pools,
    server,
)

RULES: dict[str, Rule] = table(
    conn_guard.RULES,
    persistence.RULES,
    keys.RULES,
    pools.RULES,
    options.RULES,
    poolers.RULES,
    middleware.RULES,
    server.RULES,
    capacity.RULES,
)


def static_messages(
    project: Project, speaks: Collection[Speaks] = ("always", "at start")
) -> Iterator[CheckMessage]:
    """Yield the messages of the static rules of *speaks* about *project*; connects to nothing."""
    subjects: dict[Subject, Sequence[object]] = {"project": [project], "alias": project.aliases}
    for rule in RULES.values():
        if rule.speaks in speaks:
            for subject in subjects.get(rule.subject, ()):
                yield from rule.messages(subject)


def messages(subject: Subject, of: object) -> Iterator[CheckMessage]:
    """Yield the messages of every rule that takes *subject* about the object *of* that kind."""
    for rule in RULES.values():
        if rule.subject == subject:
            yield from rule.messages(of)
