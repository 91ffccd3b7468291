"""Connections of a test's own: an alias whose sessions can be counted from outside by its
application_name.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import django
import pytest
from django.db import ConnectionHandler, connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created

from conn_guard.connections import events, tracking
from tests.django import urls
from tests.support.polling import until


class Observer:
    """A session of its own that asks PostgreSQL what is open."""

    def __init__(self) -> None:
        default = connections.settings["default"]
        # A handler of its own, so that nothing that closes the aliases of a thread ends the
        # observer.
        handler = ConnectionHandler(
            {"default": {**default, "OPTIONS": {"application_name": "observer"}}}
        )
        self.wrapper = handler["default"]
        self.wrapper.inc_thread_sharing()

    def states(self, name: str) -> list[str]:
        with self.wrapper.cursor() as cursor:
            cursor.execute("SELECT state FROM pg_stat_activity WHERE application_name = %s", [name])
            return [state for (state,) in cursor.fetchall()]

    def settled(self, name: str, count: int) -> bool:
        """Return whether *name* has *count* sessions, now or a little later: a session outlives its
        connection a moment.
        """
        deadline = time.monotonic() + 5
        while len(self.states(name)) != count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


@pytest.fixture
def observer(django_db_blocker) -> Iterator[Observer]:
    with django_db_blocker.unblock():
        watching = Observer()
        yield watching
        watching.wrapper.close()


@pytest.fixture
def make_alias(observer) -> Iterator[Callable[..., str]]:
    """Return a function that adds an alias with a unique name, which is its application_name, and
    settings of its own.
    """
    made: list[str] = []

    def make(**settings: object) -> str:
        name = f"alias_{uuid.uuid4().hex[:12]}"
        default = connections.settings["default"]
        options = {**default["OPTIONS"], "application_name": name}
        connections.settings[name] = {**default, "OPTIONS": options, **settings}
        made.append(name)
        return name

    yield make
    for name in made:
        if name in [each.alias for each in connections.all(initialized_only=True)]:
            connections[name].close()
            del connections[name]
        del connections.settings[name]


@pytest.fixture
def alias(make_alias) -> str:
    return make_alias()


@pytest.fixture
def pooled(make_alias) -> Iterator[Callable[..., str]]:
    """Return a function that adds an alias of *engine* with Django's pool, or skip the test."""
    if django.VERSION < (5, 1) or not is_psycopg3:
        pytest.skip("Django's pool came with 5.1, for psycopg 3")
    made = []

    def make(engine: str, **pool: object) -> str:
        alias = make_alias(ENGINE=engine)
        options = {"min_size": 1, "max_size": 3, "timeout": 5, **pool}
        connections.settings[alias]["OPTIONS"]["pool"] = options
        made.append(alias)
        return alias

    yield make
    for alias in made:
        connections[alias].close()
        connections[alias].close_pool()


@pytest.fixture
def listened(monkeypatch) -> Iterator[list[events.Event]]:
    """Count the events of connections while a test runs, and list those a listener is told of."""
    told: list[events.Event] = []
    monkeypatch.setattr(events, "_GATHER_EVENTS_S", 0.001)
    monkeypatch.setattr(events, "_listeners", [])
    tracking.start(told.append)
    tracking.start()
    yield told
    until(lambda: not events._counts.has_writer)
    connection_created.disconnect(dispatch_uid="conn_guard.tracking")
    events.counting = False


@pytest.fixture
def url_alias(alias, monkeypatch) -> str:
    """The alias that the views of tests.django.urls query."""
    monkeypatch.setattr(urls, "ALIASES", [alias])
    return alias


@pytest.fixture
def worker() -> Iterator[Callable[..., object]]:
    """Run a function in a thread that lives on, as the threads of gunicorn do, and return its
    result.
    """
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=30)


@pytest.fixture
def in_thread() -> Callable[..., None]:
    """Run a function in a thread that ends with it."""

    def run(function: Callable[..., object], *args: object) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(function, *args).result(timeout=30)

    return run


@pytest.fixture
def middleware_installed(settings) -> None:
    """Install the middleware over the views of tests.django.urls."""
    settings.ROOT_URLCONF = "tests.django.urls"
    settings.MIDDLEWARE = ["conn_guard.middleware.ConnectionGuardMiddleware"]
    settings.ALLOWED_HOSTS = ["*"]
