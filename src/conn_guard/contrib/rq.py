"""RQ: importing this module closes a job's connections when the job ends, in every worker class.

RQ has no signal for the end of a job. So this module wraps, once, the method that performs a
worker's jobs. A queue with ``is_async=False`` performs its jobs inside their caller, without a
worker, and nothing is closed.
"""

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
# RQ 3 defines the method in BaseWorker, RQ before 3 in Worker. A tracer may have replaced it in any
# worker class.
for _worker in {
    each
    for worker in (Worker, SimpleWorker)
    for each in worker.__mro__
    if "perform_job" in vars(each)
}:
    if not hasattr(_worker.perform_job, "closes_connections"):
        _worker.perform_job = _closing(_worker.perform_job)
