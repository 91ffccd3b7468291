"""Celery's and RQ's workers, real ones on a real Redis: no job leaves a session behind, and every
next job still works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("celery")
pytest.importorskip("django_rq")

from celery import Celery
from redis import Redis
from rq import Queue

from tests.postgres.task_site import jobs
from tests.support.polling import until
from tests.support.programs import LEASH

pytestmark = pytest.mark.django_db

JOBS = [job.__name__ for job in jobs.JOBS]
CELERY = (
    "celery -A tests.postgres.task_site.celery_app worker --without-gossip --without-mingle"
    " --loglevel WARNING"
)
POOLS = {
    "prefork": "--pool prefork --concurrency 2",
    "threads": "--pool threads --concurrency 3",
    "solo": "--pool solo",
    "gevent": "--pool gevent --concurrency 5",
}
# While one greenlet runs an event loop, Django takes the code of all others for asynchronous and
# refuses to query.
REFUSED = ("gevent", "run_asyncio")
RQ = {
    "rqworker": "django rqworker {queue}",
    "rqworker, simple": "django rqworker --worker-class rq.SimpleWorker {queue}",
    "rq worker": "rq.cli worker --config tests.postgres.task_site.rq_config {queue}",
    "rq worker, simple": (
        "rq.cli worker --config tests.postgres.task_site.rq_config --worker-class rq.SimpleWorker"
        " {queue}"
    ),
    "threads": "tests.postgres.task_site.rq_threads",
}


class Worker:
    """A worker that runs as a process of its own: how to hand it a job, and how to find its
    sessions.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.pool = ""
        self.send: Callable[[str], Callable[[], object]]

    def perform(self, *names: str) -> list[object]:
        """Return what the jobs returned, or the error that each raised, once all have ended."""
        sent = [self.send(name) for name in names]
        return [
            until(lambda result=result: self.process.poll() is not None or result(), timeout=60)
            for result in sent
        ]


@contextmanager
def _running(command: str, folder: Path, redis: str, **environment: str) -> Iterator[Worker]:
    name = f"tasks-{uuid.uuid4().hex[:12]}"
    log = folder / f"{name}.log"
    variables = {"APPLICATION_NAME": name, "QUEUE": name, "REDIS_URL": redis, **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                LEASH,
                "TERM",
                sys.executable,
                "-m",
                *command.format(queue=name).split(),
            ],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.postgres.task_site.settings",
                **variables,
            },
        )
    try:
        yield Worker(name, process, log)
        assert process.poll() is None, log.read_text()
    finally:
        process.communicate(timeout=30)


@contextmanager
def celery_worker(pool: str, folder: Path, redis: str, **environment: str) -> Iterator[Worker]:
    with _running(f"{CELERY} {POOLS[pool]}", folder, redis, **environment) as worker:
        app = Celery(broker=redis, backend=redis, fixups=[], set_as_current=False)

        def send(name: str) -> Callable[[], object]:
            result = app.send_task(name, queue=worker.name)
            return lambda: result.ready() and (result.result or True)

        worker.send = send
        worker.pool = pool
        yield worker
        app.close()


@contextmanager
def rq_worker(kind: str, folder: Path, redis: str, **environment: str) -> Iterator[Worker]:
    with (
        _running(RQ[kind], folder, redis, **environment) as worker,
        Redis.from_url(redis) as connection,
    ):
        queue = Queue(worker.name, connection=connection)

        def send(name: str) -> Callable[[], object]:
            job = queue.enqueue(f"{jobs.__name__}.{name}")

            def result() -> object:
                latest = job.latest_result()
                if latest is None:
                    return None
                return (
                    RuntimeError(latest.exc_string)
                    if latest.exc_string
                    else latest.return_value or True
                )

            return result

        worker.send = send
        yield worker


@pytest.fixture
def sessions(ask) -> Callable[[Worker], list[int]]:
    """Return a function that gives the backend pids of a worker's sessions."""

    def find(worker: Worker) -> list[int]:
        return [
            pid
            for (pid,) in ask(
                "SELECT pid FROM pg_stat_activity WHERE application_name = %s", [worker.name]
            )
        ]

    return find


@pytest.fixture(scope="module", params=POOLS)
def celery(request, redis_server, tmp_path_factory) -> Iterator[Worker]:
    if request.param == "gevent" and not find_spec("gevent"):
        pytest.skip("gevent is not installed")
    with celery_worker(request.param, tmp_path_factory.mktemp("celery"), redis_server) as worker:
        yield worker


@pytest.fixture(scope="module", params=RQ)
def rq(request, redis_server, tmp_path_factory) -> Iterator[Worker]:
    with rq_worker(request.param, tmp_path_factory.mktemp("rq"), redis_server) as worker:
        yield worker


@pytest.mark.parametrize("job", JOBS)
def test_no_task_of_celery_leaves_a_session(celery, sessions, job):
    (result,) = celery.perform(job)
    assert isinstance(result, Exception) == (job == "fail" or (celery.pool, job) == REFUSED), result
    until(lambda: not sessions(celery))
    (backend,) = celery.perform("query")
    assert isinstance(backend, int)


def test_a_task_that_fails_fails_as_before(celery):
    (error,) = celery.perform("fail")
    assert repr(error) == "ValueError('on purpose')"


def test_an_eager_task_inside_a_task_leaves_the_connection_alone(celery, sessions):
    assert celery.perform("eager_inside") == [True]
    until(lambda: not sessions(celery))


def test_tasks_side_by_side_leave_no_session(celery, sessions):
    celery.perform(*[job for job in JOBS * 3 if (celery.pool, job) != REFUSED])
    until(lambda: not sessions(celery))


@pytest.mark.parametrize("job", [*JOBS, "coroutine"])
def test_no_job_of_rq_leaves_a_session(rq, sessions, job):
    (result,) = rq.perform(job)
    assert isinstance(result, Exception) == (job == "fail"), result
    until(lambda: not sessions(rq))
    (backend,) = rq.perform("query")
    assert isinstance(backend, int)


def test_a_job_that_fails_fails_as_before(rq):
    (error,) = rq.perform("fail")
    assert str(error).endswith("ValueError: on purpose\n")


def test_jobs_side_by_side_leave_no_session(rq, sessions):
    rq.perform(*JOBS * 3)
    until(lambda: not sessions(rq))


# What the import changes, and what it leaves alone


def test_without_the_import_an_atomic_block_that_was_never_left_breaks_the_next_task(
    redis_server, tmp_path
):
    with celery_worker("solo", tmp_path, redis_server, GUARDED="0") as plain:
        plain.perform("enter_atomic")
        (error,) = plain.perform("query")
        assert "closed" in repr(error)


def test_without_the_import_a_simple_worker_keeps_its_session(redis_server, tmp_path, sessions):
    with rq_worker("rqworker, simple", tmp_path, redis_server, GUARDED="0") as plain:
        (backend,) = plain.perform("query")
        assert sessions(plain) == [backend]


def test_the_session_of_a_worker_outlives_the_jobs_of_its_children(
    redis_server, tmp_path, sessions
):
    with rq_worker("rq worker", tmp_path, redis_server, PARENT_QUERIES="1") as worker:
        # The worker imports Django before it opens its session.
        (parents,) = until(lambda: sessions(worker), timeout=30)
        worker.perform("query")
        assert sessions(worker) == [parents]


def test_a_transaction_left_open_is_logged_with_the_jobs_name(redis_server, tmp_path):
    line = "left a transaction open on 'default'; it is rolled back with its connection."
    with celery_worker("solo", tmp_path, redis_server) as worker:
        worker.perform("begin")
        until(lambda: f"begin {line}" in worker.log.read_text())
    with rq_worker("rqworker, simple", tmp_path, redis_server) as worker:
        worker.perform("begin")
        until(lambda: f"{jobs.__name__}.begin {line}" in worker.log.read_text())
