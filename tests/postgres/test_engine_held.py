"""HELD_FOR_ACTION "close": a connection that is held too long is closed when it is at rest."""

from __future__ import annotations

import contextlib
import re
import threading

import pytest
from django.db import transaction

from conn_guard import pin
from tests.support.engine import pooled

HELD_FOR_S = 0.1


@pytest.fixture(autouse=True)
def _close(settings):
    settings.CONN_GUARD = {
        "ENGINE_IDLE_FOR": None,
        "REPORT_HELD_FOR": HELD_FOR_S,
        "HELD_FOR_ACTION": "close",
    }


@pytest.fixture
def reports(caplog):
    """Return a function that returns the messages logged about the session *pid*."""
    return lambda pid: [
        record.getMessage()
        for record in caplog.records
        if record.name == "conn_guard.leaks" and re.search(rf"session {pid}\b", record.getMessage())
    ]


def test_a_connection_at_rest_is_closed_logged_and_opened_again(guarded, worker, reports, until):
    pid = worker(guarded.pid)
    assert guarded.becomes(0)
    report, closed = until(lambda: reports(pid)[1:] and reports(pid))
    assert " is held for " in report
    assert re.fullmatch(
        rf"The connection '{guarded.name}' to session {pid}, held too long, was closed by"
        r" HELD_FOR_ACTION, after \d+\.\d s\.",
        closed,
    )
    assert worker(guarded.pid) != pid


def test_use_does_not_put_it_off(guarded, worker, until):
    first = worker(guarded.pid)
    until(lambda: worker(guarded.pid) != first)


def test_a_pools_slot_is_given_back(make_engine, worker):
    alias = pooled(make_engine, max_size=1)
    worker(alias.query)
    assert alias.query() == [(1,)]


def test_the_default_only_logs(guarded, worker, reports, until, settings, reclaimer_passes):
    settings.CONN_GUARD = {"REPORT_HELD_FOR": HELD_FOR_S}
    pid = worker(guarded.pid)
    until(lambda: reports(pid))
    settings.CONN_GUARD = {"ENGINE_IDLE_FOR": HELD_FOR_S}
    reclaimer_passes()
    assert guarded.pids() == {pid}


def test_a_connection_that_the_application_closes_is_logged_so(guarded, reports, until):
    with transaction.atomic(using=guarded.name):
        pid = guarded.pid()
        until(lambda: reports(pid))
    guarded.wrapper.close()
    assert "closed after all" in until(lambda: reports(pid)[1:])[0]


# Spared, and closed once the reason has gone


@contextlib.contextmanager
def atomic(alias):
    with transaction.atomic(using=alias.name):
        alias.query()
        yield


@contextlib.contextmanager
def raw_transaction(alias):
    alias.query("BEGIN")
    yield
    alias.query("COMMIT")


@contextlib.contextmanager
def aborted_transaction(alias):
    alias.query("BEGIN")
    with contextlib.suppress(Exception):
        alias.query("SELECT 1 / 0")
    yield
    alias.query("ROLLBACK")


@contextlib.contextmanager
def between_two_transactions(alias):
    alias.wrapper.set_autocommit(False)
    alias.query()
    alias.wrapper.commit()
    yield
    alias.wrapper.set_autocommit(True)


@contextlib.contextmanager
def open_cursor(alias):
    with alias.wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        yield


@contextlib.contextmanager
def half_read_server_side_cursor(alias):
    with alias.wrapper.chunked_cursor() as cursor:
        cursor.execute("SELECT * FROM generate_series(1, 5000)")
        cursor.fetchmany(2)
        yield
        assert cursor.fetchmany(2) == [(3,), (4,)]


@contextlib.contextmanager
def pinned(alias):
    with pin(alias.name):
        alias.query()
        yield
        alias.query()


@contextlib.contextmanager
def lent(alias):
    alias.query()
    alias.wrapper.inc_thread_sharing()
    yield
    alias.wrapper.dec_thread_sharing()


@contextlib.contextmanager
def advisory_lock(alias):
    alias.query("SELECT pg_advisory_lock(4711)")
    yield
    alias.query("SELECT pg_advisory_unlock(4711)")


@contextlib.contextmanager
def another_role(alias):
    alias.query("SET ROLE pg_monitor")
    yield
    assert alias.query("SELECT current_user::text") == [("pg_monitor",)]
    alias.query("RESET ROLE")


@contextlib.contextmanager
def running_statement(alias):
    wrapper = alias.wrapper
    wrapper.inc_thread_sharing()
    done = threading.Event()

    def run():
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.5)")
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    alias.until(lambda: [state for _, state, _ in alias.sessions()] == ["active"])
    wrapper.dec_thread_sharing()
    yield
    assert done.wait(30)
    thread.join()


REASONS = (
    atomic,
    raw_transaction,
    aborted_transaction,
    between_two_transactions,
    open_cursor,
    half_read_server_side_cursor,
    pinned,
    lent,
    advisory_lock,
    another_role,
    running_statement,
)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
def test_a_connection_with_a_reason_is_kept_until_the_reason_goes(
    guarded, reclaimer_passes, reason
):
    with reason(guarded):
        held = guarded.pids()
        reclaimer_passes()
        assert guarded.pids() == held
        assert len(held) == 1
    assert guarded.becomes(0)


def test_a_connection_whose_settings_have_autocommit_off_is_kept(make_engine, reclaimer_passes):
    alias = make_engine(CONN_MAX_AGE=None, AUTOCOMMIT=False)
    pid = alias.pid()
    alias.wrapper.commit()
    reclaimer_passes()
    assert alias.pids() == {pid}
    alias.wrapper.close()
