"""The engine around a request, at connect, with pools, dropped wrappers and notifications."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import django
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.core.handlers.wsgi import WSGIHandler
from django.db import (
    ConnectionHandler,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created
from django.http import HttpResponse
from django.test import RequestFactory, override_settings
from django.urls import path

from tests.support.engine import BROKEN, pooled

# What tools replace in Django's classes, and event loops


@pytest.mark.parametrize("name", ["ensure_connection", "cursor", "create_cursor", "commit"])
def test_a_method_that_a_tool_replaced_in_djangos_class_is_called_at_once(
    guarded, monkeypatch, name
):
    owner = DatabaseWrapper if name == "create_cursor" else BaseDatabaseWrapper

    def refuse(*args):
        raise PermissionError(name)

    guarded.query("SELECT 1")
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(PermissionError):
        getattr(guarded.wrapper, "commit" if name == "commit" else "cursor")()


@pytest.mark.parametrize("name", ["ensure_connection", "cursor", "create_cursor", "commit"])
def test_an_open_connection_refuses_a_call_in_an_event_loop(guarded, monkeypatch, name):
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)
    guarded.query("SELECT 1")

    async def call():
        getattr(guarded.wrapper, name)()

    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(call())


# At the end of a request


def test_the_end_of_a_request_does_not_connect(alias):
    alias.pid()
    alias.end_sessions()
    alias.wrapper.close_if_unusable_or_obsolete()
    assert alias.wrapper.connection is None


def test_the_end_of_a_request_closes_a_raw_transaction_and_logs_it(guarded, worker, caplog):
    def begin(request):
        guarded.query("BEGIN")
        return HttpResponse()

    assert worker(serve, begin) == 200
    assert guarded.becomes(0)
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("conn_guard.engine", "WARNING")
    ]
    assert repr(guarded.name) in caplog.messages[0]


def test_the_test_client_leaves_a_raw_transaction_to_its_test(guarded, client, settings):
    settings.ROOT_URLCONF = type(
        "urls", (), {"urlpatterns": [path("", lambda request: HttpResponse())]}
    )
    guarded.query("BEGIN")
    client.get("/")
    assert [state for _, state, _ in guarded.sessions()] == ["idle in transaction"]
    guarded.query("ROLLBACK")


def serve(view):
    """Serve one request with *view*, as a WSGI server does, and return its status."""
    with override_settings(
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=[],
        ROOT_URLCONF=type("urls", (), {"urlpatterns": [path("", view)]}),
    ):
        response = WSGIHandler()(RequestFactory().get("/").environ, lambda *args: None)
        response.close()
        return response.status_code


def test_the_end_of_a_request_keeps_what_is_persistent(guarded):
    pid = guarded.pid()
    guarded.wrapper.close_if_unusable_or_obsolete()
    assert guarded.pid() == pid


def test_a_thread_poisoned_by_an_atomic_block_never_left_answers_again(
    guarded, worker, settings, monkeypatch
):
    def poison(request):
        transaction.atomic(using=guarded.name).__enter__()
        guarded.query()
        return HttpResponse()

    def ask(request):
        return HttpResponse(str(guarded.query()))

    settings.ALLOWED_HOSTS = ["*"]
    settings.MIDDLEWARE = []
    settings.ROOT_URLCONF = type(
        "urls", (), {"urlpatterns": [path("poison", poison), path("ask", ask)]}
    )
    handler = WSGIHandler()

    def request(name):
        response = handler(RequestFactory().get(f"/{name}").environ, lambda *args: None)
        response.close()
        return response.status_code

    assert worker(request, "poison") == 200
    assert worker(request, "ask") == 200
    assert worker(request, "ask") == 200


def test_the_test_client_leaves_a_closed_atomic_block_to_its_test(guarded, client, settings):
    settings.ROOT_URLCONF = type(
        "urls", (), {"urlpatterns": [path("", lambda request: HttpResponse())]}
    )
    with transaction.atomic(using=guarded.name):
        wrapper = guarded.wrapper
        guarded.query()
        wrapper.close()
        client.get("/")
        assert connections[guarded.name] is wrapper


# Connecting


def end_during_connect(guarded, times):
    """End the next *times* new sessions during connect; return the list that gets their pids."""
    broken = []

    def receive(connection, **kwargs):
        if connection.alias == guarded.name and len(broken) < times:
            broken.append(connection.connection.info.backend_pid)
            guarded.end_sessions()
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")

    connection_created.connect(receive, weak=False, dispatch_uid="end_during_connect")
    return broken


@pytest.fixture
def _unbroken():
    yield
    connection_created.disconnect(dispatch_uid="end_during_connect")


@pytest.mark.usefixtures("_unbroken")
def test_a_session_that_ends_while_it_is_made_is_made_again(guarded):
    broken = end_during_connect(guarded, times=2)
    assert guarded.query() == [(1,)]
    assert len(broken) == 2


@pytest.mark.usefixtures("_unbroken")
def test_a_server_that_ends_every_session_is_tried_three_times(guarded):
    broken = end_during_connect(guarded, times=99)
    with pytest.raises(BROKEN):
        guarded.query()
    assert len(broken) == 3
    assert guarded.wrapper.connection is None


def test_a_half_made_connection_is_not_used(guarded):
    """Django itself would go on as the login role after the first error."""
    guarded.wrapper.settings_dict["OPTIONS"]["assume_role"] = "no_such_role"
    for _ in range(2):
        with pytest.raises(django.db.Error, match="no_such_role"):
            guarded.query()
    assert guarded.becomes(0)


def test_a_receiver_that_fails_leaves_no_half_made_connection(guarded):
    def receive(connection, **kwargs):
        if connection.alias == guarded.name:
            raise ValueError("on purpose")

    connection_created.connect(receive)
    for _ in range(2):
        with pytest.raises(ValueError, match="on purpose"):
            guarded.query()
    connection_created.disconnect(receive)
    assert guarded.becomes(0)
    assert guarded.query() == [(1,)]


# Pools


def test_a_pool_hands_out_no_dead_connection(make_engine):
    alias = pooled(make_engine, min_size=3)
    alias.pid()
    alias.wrapper.close()
    assert alias.becomes(3)
    for _ in range(2):
        alias.end_sessions()
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(lambda _: alias.query(), range(9))) == [[(1,)]] * 9


def test_a_pooled_connection_gathers_no_handlers(make_engine):
    alias = pooled(make_engine, max_size=1)
    for _ in range(3):
        alias.query()
        assert len(alias.wrapper.connection._notice_handlers) == 1
        alias.wrapper.close()


def test_a_dropped_wrapper_returns_its_slot(make_engine):
    alias = pooled(make_engine, max_size=1, timeout=5)
    dropped = alias.wrapper.copy()
    with dropped.cursor() as cursor:
        cursor.execute("SELECT 1")
    del dropped, cursor
    gc.collect()
    assert alias.query() == [(1,)]


def test_a_thread_that_dies_returns_its_slot(make_engine):
    alias = pooled(make_engine, max_size=1, timeout=5)
    for _ in range(3):
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(alias.query).result() == [(1,)]


# Dropped wrappers


@pytest.mark.parametrize("how", ["copy", "own handler"])
def test_a_dropped_wrapper_is_closed(guarded, how):
    dropped = (
        guarded.wrapper.copy()
        if how == "copy"
        else ConnectionHandler(connections.settings)[guarded.name]
    )
    with dropped.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert len(guarded.sessions()) == 1
    watched = weakref.ref(dropped)
    del dropped, cursor
    gc.collect()
    assert watched() is None
    assert guarded.becomes(0)


def test_a_closed_wrapper_can_be_garbage_collected(guarded):
    dropped = guarded.wrapper.copy()
    raw = weakref.ref(dropped)
    dropped.ensure_connection()
    dropped.close()
    del dropped
    gc.collect()
    assert raw() is None


# Notifications


def test_a_look_keeps_no_notification_from_the_application(guarded):
    guarded.query("LISTEN jobs")
    raw = guarded.wrapper.connection
    guarded.ask("NOTIFY jobs, 'one'")
    assert select.select([raw.fileno()], [], [], 5)[0], "the notification has arrived"
    guarded.wrapper.ensure_connection()
    assert not select.select([raw.fileno()], [], [], 0)[0], "the look has read it"
    if is_psycopg3:
        assert [each.payload for each in raw.notifies(timeout=0)] == ["one"]
    else:
        assert [each.payload for each in raw.notifies] == ["one"]


@pytest.mark.skipif(not is_psycopg3, reason="psycopg 3 calls handlers")
def test_a_look_gives_a_notification_to_its_handler(guarded):
    guarded.query("LISTEN jobs")
    heard = []
    guarded.wrapper.connection.add_notify_handler(
        lambda notification: heard.append(notification.payload)
    )
    guarded.ask("NOTIFY jobs, 'one'")
    assert select.select([guarded.wrapper.connection.fileno()], [], [], 5)[0]
    guarded.wrapper.ensure_connection()
    assert heard == ["one"]
    assert guarded.query() == [(1,)]


# Engines and application_name


@pytest.mark.parametrize(
    ("stamp", "max_age", "wanted"),
    [
        ("pid", 0, "{name}:{pid}"),
        ("pid", None, "{name}:{pid}"),
        ("view", 0, "{name}:{pid}"),
        (False, 0, "{name}"),
    ],
)
def test_the_origin_is_stamped_at_connect(make_engine, settings, stamp, max_age, wanted):
    settings.CONN_GUARD = {"STAMP_ORIGIN": stamp}
    alias = make_engine(CONN_MAX_AGE=max_age)
    assert alias.query("SHOW application_name") == [
        (wanted.format(name=alias.name, pid=os.getpid()),)
    ]


@pytest.mark.parametrize(("max_age", "named"), [(0, True), (60, False)])
def test_the_view_is_stamped_where_a_connection_serves_one(
    make_engine, settings, worker, max_age, named
):
    settings.CONN_GUARD = {"STAMP_ORIGIN": "view"}
    alias = make_engine(CONN_MAX_AGE=max_age)
    settings.ALLOWED_HOSTS = ["*"]
    settings.MIDDLEWARE = ["conn_guard.middleware.ConnectionGuardMiddleware"]
    settings.ROOT_URLCONF = type(
        "urls", (), {"urlpatterns": [path("", view_of(alias), name="home")]}
    )

    def request():
        response = WSGIHandler()(RequestFactory().get("/").environ, lambda *args: None)
        response.close()
        return response.content.decode()

    name = worker(request)
    assert name.startswith(f"{alias.name}:{os.getpid()}")
    assert (f"{__name__}.view_of.<locals>.view"[:10] in name) is named


def view_of(alias):
    def view(request):
        return HttpResponse(alias.query("SHOW application_name")[0][0])

    return view


def test_a_name_of_the_environment_is_stamped_as_well(make_engine, settings, monkeypatch):
    settings.CONN_GUARD = {"STAMP_ORIGIN": "pid"}
    alias = make_engine()
    del alias.wrapper.settings_dict["OPTIONS"]["application_name"]
    assert alias.query("SHOW application_name") == [(f"django:{os.getpid()}",)]
    alias.wrapper.close()
    monkeypatch.setenv("PGAPPNAME", alias.name)
    assert alias.query("SHOW application_name") == [(f"{alias.name}:{os.getpid()}",)]


def test_the_postgis_engine_is_guarded_too(make_engine):
    try:
        from django.contrib.gis.db.backends.postgis import base  # noqa: F401
    except Exception as missing:  # noqa: BLE001
        pytest.skip(f"GeoDjango's libraries are absent: {missing}")
    alias = make_engine(engine="conn_guard.engine.postgis", CONN_MAX_AGE=None)
    alias.pid()
    alias.end_sessions()
    assert alias.query() == [(1,)]


def test_a_wrapper_is_its_threads_alone(guarded, worker):
    guarded.pid()
    wrapper = guarded.wrapper
    with pytest.raises(django.db.Error, match="can only be used in that same thread"):
        worker(lambda: wrapper.cursor())


def test_a_lent_wrapper_is_not_checked(guarded, worker):
    """The check would read from a socket that another thread may be using."""
    wrapper = guarded.wrapper
    wrapper.inc_thread_sharing()
    pid = guarded.pid()
    lock = threading.Event()

    def borrow():
        connections[guarded.name] = wrapper
        lock.set()
        return guarded.pid()

    assert worker(borrow) == pid
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query()
    wrapper.dec_thread_sharing()
    assert guarded.query() == [(1,)]


def test_an_atomic_block_whose_connection_was_taken_opens_no_other(guarded):
    with transaction.atomic(using=guarded.name):
        guarded.wrapper.close()
        guarded.wrapper.connection = None
        with pytest.raises(
            ProgrammingError, match="Cannot open a new connection in an atomic block"
        ):
            guarded.query()
