"""Celery: importing this module closes a task's connections when the task ends, in every pool.

Celery itself closes Django's connections where it finds DJANGO_SETTINGS_MODULE. But an atomic block
that a task never left breaks every later task of that thread, CELERY_DB_REUSE_MAX switches the
closing off, and a ``connection.copy()`` stays open.

It also has the tasks :func:`reap` and :func:`reap_alias`, which run only if a project sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from celery import shared_task
from celery.signals import task_postrun, task_prerun

from conn_guard.connections import ownership
from conn_guard.connections.jobs import JobScope

# By task.request, which belongs to one run. A task's id may run twice: brokers redeliver.
_scopes: WeakKeyDictionary[Any, JobScope] = WeakKeyDictionary()


def _begin(task: Any, **kwargs: object) -> None:
    # An eager task runs inside its caller and uses the caller's connections.
    if not task.request.is_eager:
        _scopes[task.request] = JobScope(lambda: task.name)


def _end(task: Any, **kwargs: object) -> None:
    scope = _scopes.pop(task.request, None)
    if scope is not None:
        scope.finish()


ownership.watch()
task_prerun.connect(_begin, weak=False, dispatch_uid="conn_guard.contrib.celery.begin")
task_postrun.connect(_end, weak=False, dispatch_uid="conn_guard.contrib.celery.end")


# The tasks import what they need: a worker that never reaps loads none of it.


@shared_task(ignore_result=True)  # type: ignore[untyped-decorator]
def reap(aliases: Sequence[str] = (), expires_seconds: float = 240, **options: Any) -> None:
    """Send :func:`reap_alias` for each of *aliases*, by default for every PostgreSQL alias.

    A task that no worker begins within *expires_seconds* is dropped. *options* are those of
    ``idle_reaper``. Raises CommandError for an alias that isn't one of PostgreSQL's.
    """
    from conn_guard.management.arguments import postgres_aliases

    chosen, _ = postgres_aliases(aliases, every=not aliases)
    for alias in chosen:
        reap_alias.apply_async((alias,), options, expires=expires_seconds)


@shared_task(ignore_result=True)  # type: ignore[untyped-decorator]
def reap_alias(alias: str, **options: Any) -> None:
    """Run ``idle_reaper`` for *alias*; the server's lock allows one at a time.

    Raises CommandError unless the exit code is 0.
    """
    from django.core.management import call_command

    call_command("idle_reaper", database=[alias], **{"verbosity": 0, **options})
