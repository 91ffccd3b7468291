"""RQ: importing this room closes a job's connections when the job ends, in every class of worker.

RQ has no signal for a job's end, so the method that every worker performs its jobs with is wrapped, once. A queue with
``is_async=False`` performs its jobs in the middle of their caller, without a worker, and is left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rq.worker import Worker

from conn_guard import connections
from conn_guard.connections import JobScope


def _closing(perform_job: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(perform_job)
    def perform(worker: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
        scope = JobScope(lambda: job.func_name)
        try:
            return perform_job(worker, job, *args, **kwargs)
        finally:
            scope.finish()

    return perform


connections.watch()
# From RQ 3 on BaseWorker defines it, before that Worker: either is the base of every class of worker.
_base: Any = next(each for each in Worker.__mro__ if "perform_job" in vars(each))
if not hasattr(_base.perform_job, "__wrapped__"):  # Reloaded: once is enough.
    _base.perform_job = _closing(_base.perform_job)
