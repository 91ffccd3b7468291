"""Jobs inside the test's own process: what runs in the middle of its caller never touches the
caller's connection.
"""

from __future__ import annotations

import asyncio
import functools
import importlib

import pytest

pytest.importorskip("celery")
pytest.importorskip("rq")

from asgiref.sync import sync_to_async
from celery import Celery
from celery.contrib.testing.worker import start_worker
from django.db import connection
from django.http import JsonResponse
from django.urls import path
from redis import Redis
from rq import Queue, SimpleWorker, Worker

import conn_guard.contrib.celery
import conn_guard.contrib.rq
from tests.postgres.task_site import jobs

pytestmark = pytest.mark.usefixtures("_root_logger")

app = Celery(broker="memory://", backend="cache+memory://", fixups=[], set_as_current=False)
app.conf.broker_transport_options = {"polling_interval": 0.05}
query = app.task(jobs.query, name="query")
fail = app.task(jobs.fail, name="fail")


def calls_a_task(request):
    return JsonResponse({"backends": [jobs.query(), query.delay().get(), jobs.query()]})


urlpatterns = [path("calls-a-task/", calls_a_task)]


@pytest.fixture
def _eager():
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


@pytest.fixture
def queue(redis_server, application_name):
    with Redis.from_url(redis_server) as redis:
        yield lambda **options: Queue(application_name, connection=redis, **options)


def make_table():
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE state AS SELECT 7")


def read_table():
    with connection.cursor() as cursor:
        cursor.execute("TABLE state")
        return cursor.fetchone()[0]


# Eager: no worker is there whose job could end.


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("task", [query, fail], ids=["query", "fail"])
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("atomic", marks=pytest.mark.django_db),
        pytest.param("open", marks=pytest.mark.django_db(transaction=True)),
    ],
)
def test_an_eager_task_leaves_its_callers_connection_alone(task, mode):
    make_table()
    task.delay()
    assert read_table() == 7


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_eager")
def test_an_eager_task_leaves_the_connection_of_a_request_alone(client, settings):
    settings.ROOT_URLCONF = __name__
    backends = client.get("/calls-a-task/").json()["backends"]
    assert len(set(backends)) == 1


@pytest.mark.django_db(transaction=True)
def test_a_job_of_a_synchronous_queue_leaves_its_callers_connection_alone(queue):
    make_table()
    assert queue(is_async=False).enqueue(jobs.query).is_finished
    assert queue(is_async=False).enqueue(jobs.fail).is_failed
    assert read_table() == 7


# A worker in the test's own thread or in one of its threads


@pytest.mark.django_db
@pytest.mark.parametrize("job", [jobs.query, jobs.fail, jobs.run_asyncio])
def test_a_worker_inside_a_test_case_leaves_its_transaction_alone(queue, job):
    make_table()
    queue().enqueue(job)
    SimpleWorker([queue()], connection=queue().connection).work(burst=True)
    assert read_table() == 7


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("job", [*jobs.JOBS, jobs.coroutine], ids=lambda job: job.__name__)
def test_a_worker_in_the_tests_thread_closes_what_is_outside_transactions(queue, job):
    jobs.query()
    jobs.KEPT.clear()
    enqueued = queue().enqueue(job)
    SimpleWorker([queue()], connection=queue().connection).work(burst=True)
    assert enqueued.is_failed == (job is jobs.fail), enqueued.latest_result().exc_string
    assert connection.connection is None
    assert asyncio.run(sync_to_async(lambda: connection.connection)()) is None
    assert [kept.connection for kept in jobs.KEPT] == [None] * len(jobs.KEPT)
    assert jobs.query()


@pytest.mark.django_db(transaction=True)
def test_a_worker_of_celery_in_a_thread_closes_at_the_end_of_a_task(ask):
    with start_worker(app, pool="solo", perform_ping_check=False):
        backend = query.delay().get(timeout=30)
        fail.delay().get(timeout=30, propagate=False)
        assert ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend]) == []


def test_importing_twice_wraps_once():
    before = SimpleWorker.perform_job
    importlib.reload(conn_guard.contrib.rq)
    assert SimpleWorker.perform_job is before


def test_what_a_tracer_wrapped_before_is_wrapped_too(monkeypatch):
    plain = SimpleWorker.perform_job.__wrapped__

    @functools.wraps(plain)
    def traced(*args):
        return plain(*args)

    monkeypatch.setattr(Worker, "perform_job", traced)
    importlib.reload(conn_guard.contrib.rq)
    assert Worker.perform_job.__wrapped__ is traced
    assert SimpleWorker.perform_job.closes_connections
