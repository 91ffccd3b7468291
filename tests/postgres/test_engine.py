"""Looking before use: a session that ended at rest is replaced unseen, and never one that would
take something with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import django
import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.db import (
    ConnectionHandler,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError
from django.http import HttpResponse
from django.test import RequestFactory, override_settings
from django.urls import path

from conn_guard import pin

BROKEN = (OperationalError, InterfaceError)
POOL = pytest.param(
    {"OPTIONS": "pool"},
    id="pool",
    marks=pytest.mark.skipif(
        django.VERSION < (5, 1) or not is_psycopg3,
        reason="Django's pool came with 5.1, for psycopg 3",
    ),
)


def pooled(make_engine, **pool):
    if django.VERSION < (5, 1) or not is_psycopg3:
        pytest.skip("Django's pool came with 5.1, for psycopg 3")
    return make_engine(options={"pool": {"min_size": 1, "max_size": 3, "timeout": 5, **pool}})


@pytest.fixture(params=[0, 60, None, "pool"])
def alias(request, make_engine):
    """An alias for every kind of CONN_MAX_AGE, and one with a pool."""
    return (
        pooled(make_engine) if request.param == "pool" else make_engine(CONN_MAX_AGE=request.param)
    )


# Replaced


def test_a_session_that_ended_at_rest_is_replaced_unseen(alias):
    first = alias.pid()
    for _ in range(3):
        alias.end_sessions()
        assert alias.pid() != first


def test_a_cursor_that_rested_between_two_statements_goes_on(alias):
    with alias.wrapper.cursor() as cursor:
        for _ in range(3):
            cursor.execute("SELECT %s::int", [5])
            assert cursor.fetchall() == [(5,)]
            alias.end_sessions()
        cursor.executemany("SELECT %s::int", [[1], [2]])
    with alias.wrapper.cursor() as unused, alias.wrapper.cursor() as other:
        other.execute("SELECT 1")
        alias.end_sessions()
        other.execute("SELECT 1")
        # Not even a cursor that was used a moment ago runs on the session that is gone.
        unused.lease.used_at = time.monotonic()
        unused.execute("SELECT 2")
        assert unused.fetchall() == [(2,)]


def test_a_debugging_cursor_goes_on_as_well(guarded):
    guarded.wrapper.force_debug_cursor = True
    with guarded.wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        guarded.end_sessions()
        cursor.execute("SELECT 2")
        assert cursor.fetchall() == [(2,)]
    assert [query["sql"] for query in guarded.wrapper.queries_log] == ["SELECT 1", "SELECT 2"]


def test_a_server_side_cursor_begins_on_a_living_session(alias):
    alias.pid()
    alias.end_sessions()
    with alias.wrapper.chunked_cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_an_atomic_block_begins_on_a_living_session(guarded, table):
    guarded.pid()
    guarded.end_sessions()
    with transaction.atomic(using=guarded.name):
        guarded.query(f"INSERT INTO {table} (n) VALUES (1)")
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]


def test_a_session_that_died_in_use_is_replaced_after_its_error(guarded):
    guarded.pid()
    with pytest.raises(BROKEN):
        guarded.query("SELECT pg_terminate_backend(pg_backend_pid())")
    assert guarded.query() == [(1,)]
    with guarded.wrapper.cursor() as cursor:
        with pytest.raises(BROKEN):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_without_autocommit_in_the_settings_a_session_is_replaced_between_transactions(
    make_engine, table
):
    alias = make_engine(CONN_MAX_AGE=None, AUTOCOMMIT=False)
    alias.query(f"INSERT INTO {table} (n) VALUES (1)")
    alias.wrapper.commit()
    alias.end_sessions()
    alias.query(f"INSERT INTO {table} (n) VALUES (2)")
    alias.wrapper.rollback()
    assert alias.query(f"SELECT n FROM {table}") == [(1,)]


def test_connections_of_several_aliases_are_replaced_each_by_its_own(make_engine):
    one, two = make_engine(CONN_MAX_AGE=None), make_engine(CONN_MAX_AGE=None)
    kept = two.pid(), one.pid()
    one.end_sessions()
    assert one.pid() != kept[1]
    assert two.pid() == kept[0]


def test_a_failing_reconnect_is_the_callers(guarded):
    guarded.pid()
    guarded.end_sessions()
    guarded.wrapper.settings_dict = {**guarded.wrapper.settings_dict, "PORT": "1"}
    with pytest.raises(OperationalError):
        guarded.query()


# Not replaced, because something would be lost


@pytest.mark.parametrize(
    "statement",
    [
        "SET ROLE pg_monitor",
        "SELECT pg_advisory_lock(4711)",
        "LISTEN jobs",
        "CREATE TEMP TABLE t (n int)",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT set_config('app.tenant', '5', false)",
    ],
)
def test_a_session_that_held_state_is_missed_by_the_caller(guarded, statement):
    guarded.query(statement)
    guarded.end_sessions()
    for _ in range(2):
        with pytest.raises(BROKEN):
            guarded.query()
    guarded.wrapper.close()
    assert guarded.query() == [(1,)]


@pytest.mark.skipif(not is_psycopg3, reason="psycopg 3's own objects")
def test_state_is_seen_in_a_statement_of_any_type(guarded):
    from psycopg import sql

    for statement in (
        sql.SQL("SET ROLE {}").format(sql.Identifier("pg_monitor")),
        b"SET ROLE pg_monitor",
    ):
        guarded.query(statement)
        guarded.end_sessions()
        with pytest.raises(BROKEN):
            guarded.query()
        guarded.wrapper.close()


def test_state_is_seen_in_a_called_function(guarded):
    with guarded.wrapper.cursor() as cursor:
        cursor.callproc("pg_advisory_lock", [4711])
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query()


def test_state_is_seen_in_many_statements(guarded):
    with guarded.wrapper.cursor() as cursor:
        cursor.executemany("SELECT set_config('app.tenant', %s, false)", [["1"], ["2"]])
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query()


def test_state_that_every_connect_makes_is_no_reason(guarded):
    def receive(connection, **kwargs):
        if connection.alias == guarded.name:
            with connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = '50s'")

    connection_created.connect(receive)
    guarded.pid()
    guarded.end_sessions()
    assert guarded.query("SHOW statement_timeout") == [("50s",)]
    connection_created.disconnect(receive)


def test_a_pinned_connection_is_missed_by_the_caller(guarded):
    with pin(guarded.name):
        guarded.pid()
        guarded.end_sessions()
        with pytest.raises(BROKEN):
            guarded.query()
    assert guarded.query() == [(1,)]


def test_without_autocommit_in_its_settings_a_transaction_is_not_continued_on_another_session(
    make_engine, table
):
    alias = make_engine(CONN_MAX_AGE=None, AUTOCOMMIT=False)
    insert = f"INSERT INTO {table} (n) VALUES (%s)"
    alias.query()
    alias.wrapper.commit()
    with alias.wrapper.cursor() as cursor:
        # In so quick a series that none but the first is looked at for having rested.
        cursor.execute(insert, [1])
        with pytest.raises(BROKEN):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    for _ in range(2):
        with pytest.raises(BROKEN):
            alias.query(insert, [2])
    alias.wrapper.close()
    assert alias.query(f"SELECT n FROM {table}") == []


def test_inside_atomic_the_error_reaches_the_caller_and_nothing_is_written(guarded, table):
    insert = f"INSERT INTO {table} (n) VALUES (%s)"

    @transaction.atomic(using=guarded.name)
    def write():
        guarded.query(insert, [1])
        guarded.end_sessions()
        guarded.query(insert, [2])

    with pytest.raises(BROKEN):
        write()
    assert guarded.query(f"SELECT n FROM {table}") == []
    guarded.query(insert, [3])
    assert guarded.query(f"SELECT n FROM {table}") == [(3,)]


def test_inside_atomic_a_swallowed_error_does_not_write_the_rest(guarded, table):
    insert = f"INSERT INTO {table} (n) VALUES (%s)"
    with (
        contextlib.suppress(*BROKEN, TransactionManagementError),
        transaction.atomic(using=guarded.name),
    ):
        guarded.query(insert, [1])
        guarded.end_sessions()
        for number in (2, 3):
            with contextlib.suppress(*BROKEN, TransactionManagementError):
                guarded.query(insert, [number])
    guarded.wrapper.close_if_unusable_or_obsolete()
    assert guarded.query(f"SELECT n FROM {table}") == []


def test_without_autocommit_the_error_reaches_the_caller_and_nothing_is_written(guarded, table):
    insert = f"INSERT INTO {table} (n) VALUES (%s)"
    guarded.wrapper.set_autocommit(False)
    guarded.query(insert, [1])
    guarded.wrapper.commit()
    guarded.query(insert, [2])
    guarded.end_sessions()
    for _ in range(2):
        with pytest.raises(BROKEN):
            guarded.query(insert, [3])
    guarded.wrapper.close()
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]


def test_with_autocommit_switched_off_a_session_is_not_replaced_between_transactions(
    guarded, table
):
    """Another one would have it on, and write what is to be rolled back."""
    guarded.wrapper.set_autocommit(False)
    guarded.query(f"INSERT INTO {table} (n) VALUES (1)")
    guarded.wrapper.commit()
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query(f"INSERT INTO {table} (n) VALUES (2)")
    guarded.wrapper.close()
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]


@pytest.mark.parametrize("moment", ["at rest", "in use"])
def test_a_raw_transaction_is_not_continued_on_another_session(guarded, table, moment):
    insert = f"INSERT INTO {table} (n) VALUES (%s)"
    guarded.query("BEGIN")
    guarded.query(insert, [1])
    if moment == "at rest":
        guarded.end_sessions()
    else:
        with pytest.raises(BROKEN):
            guarded.query("SELECT pg_terminate_backend(pg_backend_pid())")
    for _ in range(2):
        with pytest.raises(BROKEN):
            guarded.query(insert, [2])
    guarded.wrapper.close()
    assert guarded.query(f"SELECT n FROM {table}") == []


def test_a_server_side_cursor_that_lost_its_session_fails_and_the_next_query_does_not(guarded):
    cursor = guarded.wrapper.chunked_cursor()
    cursor.execute("SELECT * FROM generate_series(1, 5000)")
    assert cursor.fetchmany(2) == [(1,), (2,)]
    guarded.end_sessions()
    assert guarded.query() == [(1,)]
    with pytest.raises(BROKEN):
        cursor.fetchmany(4900)
    with pytest.raises(django.db.Error):
        cursor.execute("SELECT 1")
    with contextlib.suppress(*BROKEN):
        cursor.close()


def test_a_connection_that_its_owner_closed_stays_closed_for_its_cursors(guarded):
    cursor = guarded.wrapper.cursor()
    cursor.execute("SELECT 1")
    guarded.wrapper.close()
    guarded.query()
    with pytest.raises(BROKEN):
        cursor.execute("SELECT 1")


# At the end of a request


def test_the_end_of_a_request_does_not_connect(alias):
    alias.pid()
    alias.end_sessions()
    alias.wrapper.close_if_unusable_or_obsolete()
    assert alias.wrapper.connection is None


def test_the_end_of_a_request_closes_a_raw_transaction_and_tells(guarded, worker, caplog):
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


def break_at(guarded, times):
    """End each new session while it is being made, *times* times, and return the pids of those that
    were.
    """
    broken = []

    def receive(connection, **kwargs):
        if connection.alias == guarded.name and len(broken) < times:
            broken.append(connection.connection.info.backend_pid)
            guarded.end_sessions()
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")

    connection_created.connect(receive, weak=False, dispatch_uid="break_at")
    return broken


@pytest.fixture
def _unbroken():
    yield
    connection_created.disconnect(dispatch_uid="break_at")


@pytest.mark.usefixtures("_unbroken")
def test_a_session_that_ends_while_it_is_made_is_made_again(guarded):
    broken = break_at(guarded, times=2)
    assert guarded.query() == [(1,)]
    assert len(broken) == 2


@pytest.mark.usefixtures("_unbroken")
def test_a_server_that_ends_every_session_is_not_asked_for_ever(guarded):
    broken = break_at(guarded, times=99)
    with pytest.raises(BROKEN):
        guarded.query()
    assert len(broken) == 3
    assert guarded.wrapper.connection is None


def test_a_half_made_connection_is_not_used(guarded):
    """Django goes on without the role after a first error, as the role that logged in."""
    guarded.wrapper.settings_dict["OPTIONS"]["assume_role"] = "nobody_of_this_name"
    for _ in range(2):
        with pytest.raises(django.db.Error, match="nobody_of_this_name"):
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


def test_a_connection_that_goes_from_hand_to_hand_gathers_nothing(make_engine):
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


def test_a_wrapper_that_was_closed_is_dropped_in_peace(guarded):
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


# Engines and their names


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


def test_a_lent_wrapper_is_not_looked_at(guarded, worker):
    """Two threads may be in the middle of it."""
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
