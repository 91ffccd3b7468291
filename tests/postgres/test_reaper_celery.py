"""The tasks that reap by Celery: one for each alias, which expires, and one at a time."""

from __future__ import annotations

import pytest

pytest.importorskip("celery")

from celery import Celery
from celery.contrib.testing.worker import start_worker
from django.core.management import CommandError

from conn_guard.contrib.celery import reap, reap_alias
from tests.support.own_server import IDLE_FOR
from tests.support.polling import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def app():
    """An application whose broker is this process's memory, and Celery's current one."""
    app = Celery(broker="memory://", backend="cache+memory://", fixups=[])
    app.conf.broker_transport_options = {"polling_interval": 0.05}
    yield app
    with app.connection() as connection, connection.SimpleQueue("celery") as queue:
        queue.clear()
    app.close()


def sent(app):
    """Return the name, alias, options and expiry of each task that waits in the queue."""
    found = []
    with app.connection() as connection, connection.SimpleQueue("celery") as queue:
        while queue.qsize():
            message = queue.get_nowait()
            args, options, _ = message.payload
            found.append((message.headers["task"], *args, options, message.headers["expires"]))
            message.ack()
    return found


def test_each_alias_is_a_task_of_its_own_that_expires(app):
    reap()
    tasks = sent(app)
    assert [task[:3] for task in tasks] == [
        ("conn_guard.contrib.celery.reap_alias", "default", {}),
        ("conn_guard.contrib.celery.reap_alias", "other", {}),
    ]
    assert all(expires for *_, expires in tasks)


def test_aliases_and_options_are_handed_on(app):
    reap(["other"], expires_seconds=60, keep=2)
    assert [task[1:3] for task in sent(app)] == [("other", {"keep": 2})]
    with pytest.raises(CommandError, match="DATABASES\\['lite'\\] is no PostgreSQL"):
        reap(["lite"])


@pytest.mark.usefixtures("_root_logger")
def test_a_worker_ends_the_sessions_of_each_alias(app, server):
    first, second = server.session(), server.session(dbname="template1")
    with (
        server.alias("one"),
        server.alias("two", NAME="template1"),
        start_worker(app, pool="solo", perform_ping_check=False),
    ):
        server.rested(first, second)
        reap.delay(["one", "two"], idle_for=IDLE_FOR)
        until(lambda: not server.alive(first) and not server.alive(second), timeout=30)
        until(lambda: not server.reapers())


def test_a_run_that_fails_is_a_task_that_fails(app, server):
    with server.alias("one"), pytest.raises(CommandError, match="--idle-for: 'ten' is not"):
        reap_alias("one", idle_for="ten")
