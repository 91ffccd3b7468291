"""RQ: importing this room closes a job's connections when the job ends, in every class of worker.

RQ has no signal for a job's end, so the method that every worker performs its jobs with is wrapped,
once. A queue with ``is_async=False`` performs its jobs in the middle of their caller, without a
worker, and is left alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rq.worker import SimpleWorker, Worker

from conn_guard.connections import ownership
from conn_guard.connections.jobs import JobScope


def _closing(perform_job: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(perform_job)
    def perform(worker: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
        scope = JobScope(lambda: job.func_name)
        try:
            return perform_job(worker, job, *args, **kwargs)
        finally:
            scope.finish()

    vars(perform)["closes_connections"] = True
    return perform


ownership.watch()
# From RQ 3 on BaseWorker defines it, before that Worker; a tracer may have wrapped it in any class
# of workers before us.
for _worker in {
    each
    for worker in (Worker, SimpleWorker)
    for each in worker.__mro__
    if "perform_job" in vars(each)
}:
    if not hasattr(_worker.perform_job, "closes_connections"):
        _worker.perform_job = _closing(_worker.perform_job)
