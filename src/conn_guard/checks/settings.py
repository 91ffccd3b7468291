"""What is wrong with the settings, found without a connection: this room holds the static rules, one function an id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from numbers import Real

from conn_guard import conf
from conn_guard.checks.project import Alias, Project, shown
from conn_guard.checks.table import Found, rule

project_rule = partial(rule, subject="project")
alias_rule = partial(rule, subject="alias")

GUARD = "conn_guard.middleware.ConnectionGuardMiddleware"


def _problems(id: str) -> Callable[[Project], Iterator[Found]]:  # noqa: A002
    def find(project: Project) -> Iterator[Found]:
        for problem in conf.parse(project.get("CONN_GUARD", {}))[1]:
            if problem.id == id:
                yield problem.message, problem.hint

    return find


for _id, _slug in (("E001", "conn-guard-type"), ("E002", "conn-guard-key"), ("E003", "conn-guard-value")):
    project_rule(_id, _slug, why="", django="", cure="")(_problems(_id))


@alias_rule("E101", "max-age-type", why="", django="", cure="")
def max_age_type(alias: Alias) -> Iterator[Found]:
    if alias.age is not None and not isinstance(alias.age, Real):
        yield (
            f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)}, not a number of seconds or None.",
            "Write a number: int(os.environ[...]) for a variable, 60 for a minute, None without quotes for no limit.",
        )


@alias_rule("W120", "asgi-persistent", why="", django="", cure="")
def asgi_persistent(alias: Alias) -> Iterator[Found]:
    project = alias.project
    if alias.connects and alias.persistent and project.get("ASGI_APPLICATION") and not project.get("WSGI_APPLICATION"):
        yield (
            f"{alias}['CONN_MAX_AGE'] is {shown(alias.age)} and the project is served by ASGI, where no request finds the connection again.",
            "Write CONN_MAX_AGE = 0, or 0 with OPTIONS['pool'] to keep connections open.",
        )


@project_rule("I201", "middleware-absent", why="", django="", cure="")
def middleware_absent(project: Project) -> Iterator[Found]:
    if not _positions(project) and any(alias.connects for alias in project.aliases):
        yield f"MIDDLEWARE has no {GUARD!r}.", f"Put {GUARD!r} first in MIDDLEWARE."


@project_rule("W202", "middleware-twice", why="", django="", cure="")
def middleware_twice(project: Project) -> Iterator[Found]:
    count = len(_positions(project))
    if count > 1:
        yield f"MIDDLEWARE has {GUARD!r} {count} times.", "Keep the first of them."


def _positions(project: Project) -> list[int]:
    return [index for index, path in enumerate(project.middleware) if path.rpartition(".")[2].endswith("ConnectionGuardMiddleware")]
