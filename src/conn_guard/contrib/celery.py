"""Celery: importing this module closes a task's connections when the task ends, in every pool.

Celery itself closes Django's connections where it finds DJANGO_SETTINGS_MODULE. But an atomic block
that a task never left breaks every later task of that thread, CELERY_DB_REUSE_MAX switches the
closing off, and a ``connection.copy()`` stays open.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

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
