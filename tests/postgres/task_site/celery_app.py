"""The Celery application of the project; ``celery -A`` names it."""

from __future__ import annotations

import os

from celery import Celery

from tests.postgres.task_site import jobs

if os.environ.get("GUARDED") != "0":
    import conn_guard.contrib.celery  # noqa: F401

app = Celery("task_site", broker=os.environ.get("REDIS_URL"), backend=os.environ.get("REDIS_URL"))
app.conf.update(
    task_default_queue=os.environ.get("QUEUE", "celery"),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
TASKS = {job.__name__: app.task(job, name=job.__name__) for job in jobs.JOBS}


@app.task(name="eager_inside")
def eager_inside() -> bool:
    """Return whether a task that runs eagerly in the middle of this one leaves its connection
    alone.
    """
    return jobs.query() == TASKS["query"].apply().result == jobs.query()
