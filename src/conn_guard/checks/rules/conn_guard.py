"""Rules about CONN_GUARD and about conn_guard's engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from conn_guard.checks.project import Alias, Project
from conn_guard.checks.registry import Found, Rule
from conn_guard.text import shown


def problems(id: str, project: Project) -> Iterator[Found]:  # noqa: A002
    for problem in project.conn_guard_problems:
        if problem.id == id:
            yield problem.message, problem.hint


def tenants_replacement(alias: Alias) -> Iterator[Found]:
    tenants = alias.project.tenants or ("a tenants' engine" if alias.engine.has_tenants else None)
    if tenants and alias.replaces_ended_sessions:
        yield (
            (
                f"{alias} uses conn_guard's engine beside {tenants}, which sets search_path on the"
                " session: a new session in place of an ended one would lose it."
            ),
            (
                f"Write CONN_GUARD['ENGINE_REPLACE'] = {{{shown(alias.name)}: False}}, and hold"
                f" conn_guard.pin({shown(alias.name)}) while the tenant is set."
            ),
        )


RULES = (
    Rule(
        id="E001",
        slug="conn-guard-type",
        subject="project",
        why="A CONN_GUARD that is not a dict cannot be read: every setting keeps its default.",
        django="Django accepts any value for a setting that it doesn't know.",
        cure="Write a dict. `CONN_GUARD = {}` is enough, and `CONN_GUARD` may be absent.",
        find=partial(problems, "E001"),
    ),
    Rule(
        id="E002",
        slug="conn-guard-key",
        subject="project",
        why="A key that conn_guard doesn't know has no effect.",
        django="Django doesn't read the keys, so it reports no misspelling.",
        cure="Write the key as the hint spells it, or remove it.",
        find=partial(problems, "E002"),
    ),
    Rule(
        id="E003",
        slug="conn-guard-value",
        subject="project",
        why="A key with a wrong value keeps its default.",
        django=(
            "Django doesn't read the values. conn_guard's middleware raises the same words as"
            " `ImproperlyConfigured` when a server starts; its commands exit with 2."
        ),
        cure="Write the value as the hint shows it.",
        find=partial(problems, "E003"),
    ),
    Rule(
        id="W133",
        slug="tenants-replacement",
        subject="alias",
        why=(
            "django-tenants and tenant-schemas choose the tenant by `search_path`, a setting of the"
            " session. Where conn_guard's engine replaces a session that the server ended, or"
            " closes one at rest, the tenant's `search_path` must not be lost: the next query"
            " would read another schema."
        ),
        django=(
            "Django raises `OperationalError` for a session that the server ended and opens no new"
            " session in the middle of a request."
        ),
        cure=(
            'Write `CONN_GUARD = {"ENGINE_REPLACE": {"default": False}}` for the alias, and hold'
            ' `conn_guard.pin("default")` while the tenant is set.'
        ),
        find=tenants_replacement,
    ),
)
