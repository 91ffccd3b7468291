"""Huey and Dramatiq inside the test's own process: what runs in its caller leaves the caller's
connection alone.
"""

from __future__ import annotations

import importlib

import pytest
from django.db import connection

from tests.postgres.task_site import jobs

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def huey():
    huey = pytest.importorskip("huey")
    importlib.import_module("conn_guard.contrib.huey")
    return huey.MemoryHuey()


def test_a_task_of_huey_closes_what_its_thread_has_open(huey):
    task = huey.task()(jobs.query)
    jobs.query()
    task()
    huey.execute(huey.dequeue())
    assert connection.connection is None


def test_a_task_of_huey_that_leaves_a_transaction_open_is_logged_by_its_name(huey, caplog):
    huey.task()(jobs.begin)()
    huey.execute(huey.dequeue())
    assert caplog.messages[-1].startswith(f"{jobs.__name__}.begin left a transaction open")


@pytest.mark.parametrize("job", [jobs.query, jobs.fail], ids=lambda job: job.__name__)
def test_an_immediate_task_of_huey_leaves_its_callers_connection_alone(huey, job):
    huey.immediate = True
    backend = jobs.query()
    huey.task()(job)()
    assert jobs.query() == backend


@pytest.mark.django_db(transaction=False)
def test_a_task_of_huey_inside_a_test_case_leaves_its_transaction_alone(huey):
    backend = jobs.query()
    huey.task()(jobs.query)()
    huey.execute(huey.dequeue())
    assert jobs.query() == backend


def test_importing_twice_wraps_once(huey):
    before = type(huey).execute
    importlib.reload(importlib.import_module("conn_guard.contrib.huey"))
    assert type(huey).execute is before


def test_a_message_that_dramatiq_skips_leaves_no_session(ask, until):
    dramatiq = pytest.importorskip("dramatiq")
    from dramatiq.brokers.stub import StubBroker
    from dramatiq.middleware import Middleware, SkipMessage

    from conn_guard.contrib.dramatiq import ConnectionGuardMiddleware

    backends = []

    class Skips(Middleware):
        def before_process_message(self, broker, message):
            backends.append(jobs.query())
            raise SkipMessage

    broker = StubBroker(middleware=[ConnectionGuardMiddleware(), Skips()])
    actor = dramatiq.actor(jobs.query, broker=broker)
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    try:
        actor.send()
        broker.join(actor.queue_name)
        worker.join()
        (backend,) = backends
        until(lambda: not ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend]))
    finally:
        worker.stop()
        broker.close()
