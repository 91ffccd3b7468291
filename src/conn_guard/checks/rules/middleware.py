"""Rules about MIDDLEWARE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from conn_guard.checks.project import Project
from conn_guard.checks.registry import Found, Rule

GUARD = "conn_guard.middleware.ConnectionGuardMiddleware"
QUERYING = (
    "django.contrib.auth.",
    "django.contrib.flatpages.",
    "django.contrib.redirects.",
    "django.contrib.sites.",
)


def middleware_absent(project: Project) -> Iterator[Found]:
    if not _guards(project) and any(alias.engine.connects for alias in project.aliases):
        yield f"MIDDLEWARE has no {GUARD!r}.", "Put it first in MIDDLEWARE."


def middleware_twice(project: Project) -> Iterator[Found]:
    guards = _guards(project)
    if len(guards) > 1:
        yield (
            f"MIDDLEWARE has {' and '.join(repr(project.middleware[at]) for at in guards)}.",
            "Keep the first one alone.",
        )


def middleware_late(project: Project) -> Iterator[Found]:
    guards = _guards(project)
    before = project.middleware[: guards[0]] if guards else ()
    for path in before:
        if _queries(project, path):
            guard = project.middleware[guards[0]]
            yield (
                f"MIDDLEWARE has {path!r}, which may query, before {guard!r}.",
                f"Put {guard!r} first.",
            )


def _guards(project: Project) -> list[int]:
    """Return the places of our middleware; its name tells, because nothing may be imported."""
    return [
        at
        for at, path in enumerate(project.middleware)
        if path.endswith("ConnectionGuardMiddleware")
    ]


def _queries(project: Project, path: str) -> bool:
    if path.startswith(QUERYING):
        return True
    if path.startswith("django.contrib.sessions."):
        engine = project.get("SESSION_ENGINE")
        if engine == "django.contrib.sessions.backends.cache":
            return _is_database_cache(project, project.get("SESSION_CACHE_ALIAS"))
        return engine in (
            "django.contrib.sessions.backends.db",
            "django.contrib.sessions.backends.cached_db",
        )
    if path.startswith("django.middleware.cache."):
        return _is_database_cache(project, project.get("CACHE_MIDDLEWARE_ALIAS"))
    return False


def _is_database_cache(project: Project, name: object) -> bool:
    caches = project.get("CACHES")
    cache = caches.get(name) if isinstance(caches, Mapping) else None
    return isinstance(cache, Mapping) and str(cache.get("BACKEND")).endswith(".DatabaseCache")


RULES = (
    Rule(
        id="I201",
        slug="middleware-absent",
        subject="project",
        why=(
            "Without the middleware a connection ends with its thread or task, not with its"
            " request. A server logs this once at its start; commands other than `check` don't"
            " report it."
        ),
        django=(
            "A connection that was opened in a request stays open until Django's"
            " `request_finished`, which a failed send skips."
        ),
        cure=f'Put `"{GUARD}"` first in MIDDLEWARE.',
        find=middleware_absent,
        speaks="at start",
    ),
    Rule(
        id="W202",
        slug="middleware-twice",
        subject="project",
        why="The second one has nothing left to do.",
        django="Django runs both for each request.",
        cure="Keep the first one.",
        find=middleware_twice,
    ),
    Rule(
        id="W203",
        slug="middleware-late",
        subject="project",
        why="conn_guard's middleware can't end a connection that a middleware before it opens.",
        django=(
            "A middleware before conn_guard's may query on the way in: the connection is open"
            " before ours looks. It may query on the way out: the connection that ours closed is"
            " opened once more."
        ),
        cure=f'Put `"{GUARD}"` first in MIDDLEWARE.',
        find=middleware_late,
    ),
)
