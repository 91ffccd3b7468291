"""Connections are counted as opened and closed, with the reason, once a metric asks for it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import DatabaseError, connections
from django.db.backends.signals import connection_created

from conn_guard import closing_connections
from conn_guard.connections import events, tracking
from conn_guard.connections.jobs import JobScope
from tests.postgres.test_engine_fork import fork_in_c, in_child
from tests.support import handlers
from tests.support.polling import until

DJANGOS = "django.db.backends.postgresql"
OURS = "conn_guard.engine.postgresql"

# psycopg 3 warns of a connection that is dropped, and here some are.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _counting(listened):
    pass


@pytest.fixture(params=[DJANGOS, OURS], ids=["django", "ours"])
def any_alias(request, make_alias):
    return make_alias(ENGINE=request.param)


def query(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def counts(alias):
    """Return how many connections were opened, and how many were closed for each reason."""
    closed = {}
    opened = 0
    for (kind, of, reason), total in events.totals().items():
        if of == alias and kind == "opened":
            opened = total
        if of == alias and kind == "closed":
            closed[reason] = total
    return opened, closed


def reaches(alias, opened, **closed):
    deadline = time.monotonic() + 5
    while counts(alias) != (opened, closed) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert counts(alias) == (opened, closed)


def total(kind, alias=""):
    return events.totals().get((kind, alias, ""), 0)


def test_djangos_own_close_is_counted(any_alias, observer):
    query(any_alias)
    reaches(any_alias, 1)
    connections[any_alias].close()
    connections[any_alias].close()
    query(any_alias)
    connections[any_alias].close()
    assert observer.settled(any_alias, 0)
    reaches(any_alias, 2, django=2)


def test_the_end_of_a_thread_closes_for_its_owner(any_alias, in_thread):
    in_thread(query, any_alias)
    reaches(any_alias, 1, owner=1)


def test_a_connection_without_an_owner_is_dropped(any_alias, settings, in_thread):
    settings.CONN_GUARD = {"CLOSE_WITH_OWNER": False}
    in_thread(query, any_alias)
    gc.collect()
    reaches(any_alias, 1, dropped=1)


def test_a_closed_connection_that_is_kept_counts_as_closed(any_alias):
    query(any_alias)
    kept = connections[any_alias].connection
    connections[any_alias].close()
    reaches(any_alias, 1, django=1)
    del kept
    reaches(any_alias, 1, django=1)


def test_the_drivers_own_close_is_counted_when_django_sees_it(any_alias):
    query(any_alias)
    connections[any_alias].connection.close()
    connections[any_alias].close()
    reaches(any_alias, 1, django=1)


def test_a_dropped_copy_is_counted(make_alias):
    # With our engine, which needs no garbage collector.
    alias = make_alias(ENGINE=OURS)
    copied = connections[alias].copy()
    copied.cursor().close()
    kept = copied.connection
    reaches(alias, 1)
    del copied
    gc.collect()
    reaches(alias, 1, dropped=1)
    assert kept.closed


def test_a_close_inside_an_atomic_block_is_counted_once(any_alias):
    wrapper = connections[any_alias].copy()
    wrapper.set_autocommit(True)
    wrapper.in_atomic_block = True
    wrapper.close()
    reaches(any_alias, 1, django=1)
    del wrapper
    gc.collect()
    reaches(any_alias, 1, django=1)


def test_a_block_that_closes_is_a_job(any_alias):
    with closing_connections():
        query(any_alias)
    scope = JobScope(lambda: "a job")
    query(any_alias)
    scope.finish()
    reaches(any_alias, 2, job=2)


@pytest.mark.parametrize("max_age", [0, None])
def test_the_middleware_closes_for_the_request(url_alias, middleware_installed, worker, max_age):
    connections.settings[url_alias]["CONN_MAX_AGE"] = max_age
    worker(handlers.wsgi, "/plain/")
    worker(handlers.wsgi, "/plain/")
    if max_age == 0:
        reaches(url_alias, 2, request=2)
    else:
        reaches(url_alias, 1)
        worker(lambda: connections[url_alias].close())
        # The request that left it open is not the reason.
        reaches(url_alias, 1, django=1)


def test_a_response_that_is_never_closed_is_counted(url_alias, middleware_installed):
    before = total("never_closed")

    async def fail(message):
        raise RuntimeError("the client left")

    with pytest.raises(RuntimeError):
        asyncio.run(handlers.asgi("/plain/", send=fail))
    until(lambda: total("never_closed") == before + 1)
    reaches(url_alias, 1, owner=1)


def test_idle_held_and_replaced_connections_are_counted(make_alias, settings, ask_to_end):
    settings.CONN_GUARD = {"REPORT_HELD_FOR": 0.05, "ENGINE_IDLE_FOR": 0.2}
    alias = make_alias(ENGINE=OURS)
    query(alias)
    until(lambda: total("held_too_long", alias) == 1)
    reaches(alias, 1, idle=1)
    settings.CONN_GUARD = {}
    query(alias)
    ask_to_end(alias)
    query(alias)
    reaches(alias, 3, idle=1, replaced=1)
    assert total("replaced", alias) == 1


@pytest.fixture
def ask_to_end(observer):
    def end(alias):
        with observer.wrapper.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = %s",
                [alias],
            )
        assert observer.settled(alias, 0)

    return end


@pytest.mark.parametrize("engine", [DJANGOS, OURS])
def test_a_pools_connections_count_while_the_pool_holds_them(pooled, engine, observer, in_thread):
    alias = pooled(engine, min_size=3)
    query(alias)
    pool = tracking.pools()[alias]
    until(lambda: pool.get_stats()["pool_available"] == 2)
    assert tracking.in_use()[alias] == 1
    connections[alias].close()
    query(alias)
    # Two were handed out. The pool opened the third in advance.
    reaches(alias, 3)
    connections[alias].close()
    reaches(alias, 3)
    assert tracking.in_use()[alias] == 0
    assert observer.settled(alias, 3)
    in_thread(connections[alias].close_pool)
    assert observer.settled(alias, 0)
    reaches(alias, 3, django=3)


def test_a_pools_connection_with_a_dropped_wrapper_goes_back(pooled):
    alias = pooled(OURS)
    query(alias)
    connections[alias].copy().cursor().close()
    gc.collect()
    until(lambda: tracking.in_use()[alias] == 1)
    assert counts(alias)[1] == {}


def test_a_pools_ended_connection_is_replaced(pooled, ask_to_end, caplog):
    # A kept record of the pool's log keeps the connection.
    caplog.set_level(logging.CRITICAL, "psycopg.pool")
    alias = pooled(OURS, max_size=1)
    query(alias)
    connections[alias].close()
    ask_to_end(alias)
    query(alias)
    reaches(alias, 2, django=1)
    assert total("replaced", alias) == 1


def test_sqlite_is_counted(make_alias, tmp_path, worker):
    alias = make_alias(ENGINE="django.db.backends.sqlite3", NAME=str(tmp_path / "db"), OPTIONS={})
    worker(query, alias)
    worker(lambda: connections[alias].close())
    reaches(alias, 1, django=1)


def test_open_connections_agree_with_the_server(any_alias, observer):
    chance = random.Random(1)
    kept = []

    def work():
        for _ in range(6):
            query(any_alias)
            act = chance.choice(["close", "stay", "keep a copy", "drop a copy", "collect"])
            if act == "close":
                connections[any_alias].close()
            elif act.endswith("copy"):
                copied = connections[any_alias].copy()
                copied.cursor().close()
                if act.startswith("keep"):
                    kept.append(copied)
            elif act == "collect":
                gc.collect()

    for _ in range(3):
        with ThreadPoolExecutor(4) as executor:
            for each in [executor.submit(work) for _ in range(4)]:
                each.result()
        gc.collect()

        def agree():
            opened, closed = counts(any_alias)
            return opened - sum(closed.values()) == len(observer.states(any_alias))

        until(agree)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("fork", [os.fork, fork_in_c])
def test_a_forked_child_counts_from_zero(any_alias, fork):
    query(any_alias)
    reaches(any_alias, 1)

    def child():
        before = events.totals(), tracking.in_use()
        # The parent's connection isn't closed here: that would end the parent's session.
        connections[any_alias].connection = None
        query(any_alias)
        reaches(any_alias, 1)
        connections[any_alias].close()
        reaches(any_alias, 1, django=1)
        return before

    assert in_child(child, fork) == "({}, Counter())"
    reaches(any_alias, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_no_event_is_written_while_the_process_forks(any_alias, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(events, "_GATHER_EVENTS_S", 60)
        query(any_alias)
        assert events._counts.has_writer
        assert in_child(lambda: (events._counts.has_writer, tracking.pools())) == "(False, {})"
        assert not events._counts.has_writer
        assert counts(any_alias) == (1, {})


def test_nothing_is_counted_unless_asked(any_alias):
    connection_created.disconnect(dispatch_uid="conn_guard.tracking")
    events.counting = False
    with closing_connections():
        query(any_alias)
    query(any_alias)
    assert "_close" not in vars(connections[any_alias])
    # A connection that was open before is not counted when it ends, either.
    tracking.start()
    connections[any_alias].close()
    query(any_alias)
    reaches(any_alias, 1)
    # Nor is the reason of an earlier close remembered.
    connections[any_alias].close()
    reaches(any_alias, 1, django=1)


def test_a_listener_is_told_of_each_event_and_may_fail(any_alias, listened, caplog):
    caplog.set_level(logging.ERROR)

    def fail(event):
        raise ValueError(event.kind)

    events.count(fail)
    query(any_alias)
    connections[any_alias].close()
    reaches(any_alias, 1, django=1)
    kinds = [event.kind for event in listened if event.alias == any_alias]
    assert [kind for kind in kinds if kind in ("opened", "closed")] == ["opened", "closed"]
    [used] = [event for event in listened if event.kind == "used" and event.alias == any_alias]
    assert 0 <= used.seconds < 60
    assert ("created" in kinds) == (connections[any_alias].settings_dict["ENGINE"] == OURS)
    assert f"An event of the connection {any_alias!r} was not told." in caplog.text


def test_the_writer_ends_when_no_event_is_pending(any_alias, listened):
    counts_here = events._current()
    until(lambda: not counts_here.has_writer)
    counts_here.has_writer = True
    events.report("held_too_long", any_alias)
    events._write(counts_here)
    assert not counts_here.has_writer
    assert total("held_too_long", any_alias) == 1
    assert listened == [("held_too_long", any_alias, "", 0.0)]


def test_a_receiver_that_fails_neither_raises_nor_counts(any_alias, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "_entry", None)
    query(any_alias)
    assert f"The connection {any_alias!r} is not counted." in caplog.text
    connections[any_alias].close()
    assert counts(any_alias) == (0, {})


def test_a_close_that_fails_counts(any_alias, monkeypatch):
    query(any_alias)
    wrapper = connections[any_alias]
    raw = wrapper.connection

    def fail(self):
        raise DatabaseError("the close failed")

    with monkeypatch.context() as patch:
        patch.setattr(type(wrapper), "_close", fail)
        with pytest.raises(DatabaseError):
            wrapper.close()
    raw.close()
    reaches(any_alias, 1, django=1)
