"""Huey: importing this module closes a task's connections when the task ends, in every worker.

Huey's own ``db_task`` leaves open what ``CONN_MAX_AGE`` keeps and a ``connection.copy()``, and an
atomic block that a timeout interrupted breaks every later task of the thread. In immediate mode a
task runs inside its caller, and nothing is closed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from huey.api import Huey

from conn_guard.connections import ownership
from conn_guard.connections.jobs import JobScope


def _closing(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def execute_and_close(huey: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
        if huey.immediate:
            return execute(huey, task, *args, **kwargs)
        scope = JobScope(lambda: f"{type(task).__module__}.{task.name}")
        try:
            return execute(huey, task, *args, **kwargs)
        finally:
            scope.finish()

    vars(execute_and_close)["closes_connections"] = True
    return execute_and_close


ownership.watch()
# Huey's hooks don't run for every end of a task, and each instance has its own.
if not hasattr(Huey.execute, "closes_connections"):
    Huey.execute = _closing(Huey.execute)
