"""Connections that threads leave open are counted by the code that left them."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from conn_guard.connections import events, scopes
from tests.support.polling import until


@pytest.fixture(autouse=True)
def _at_rest(caplog):
    # A thread that an earlier test started may still wait for its line.
    until(lambda: not events._waiting_in)
    caplog.set_level(logging.INFO, "conn_guard")


def work(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def run_threads(count, alias):
    threads = [threading.Thread(target=work, args=[alias]) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def lines(caplog):
    return [text for text in caplog.messages if text.startswith("Ended connections")]


def test_threads_are_named_by_what_they_run(alias, observer, caplog):
    run_threads(3, alias)
    assert observer.settled(alias, 0)
    [line] = until(lambda: lines(caplog))
    assert line == (
        f"Ended connections that were left open: 3 of threads that run {__name__}.work."
    )


def test_an_executors_thread_is_named_by_the_function_that_queries(alias, observer, caplog):
    with ThreadPoolExecutor(1) as executor:
        executor.submit(work, alias).result()
    assert observer.settled(alias, 0)
    [line] = until(lambda: lines(caplog))
    assert line.endswith(f"1 of threads that run {__name__}.work.")


def test_a_view_is_named_where_its_context_reaches_the_thread(alias, observer, caplog):
    scope = scopes.RequestScope(view=lambda: "shop.views.report (report)", keep_persistent=True)

    async def view():
        await sync_to_async(work, thread_sensitive=False)(alias)

    asyncio.run(view())
    scope.finish()
    assert observer.settled(alias, 0)
    [line] = until(lambda: lines(caplog))
    assert line == (
        "Ended connections that were left open: "
        "1 of threads that shop.views.report (report) started."
    )


def test_there_is_one_line_in_a_pause(alias, observer, caplog, monkeypatch):
    run_threads(1, alias)
    assert len(until(lambda: lines(caplog))) == 1
    monkeypatch.setattr(events, "LEAST_PAUSE_S", 2.0)
    run_threads(2, alias)
    run_threads(1, alias)
    assert observer.settled(alias, 0)
    assert len(lines(caplog)) == 1
    assert "3 of threads that run" in until(lambda: lines(caplog)[1:])[0]


def test_a_thread_that_closes_its_connections_is_not_told_of(alias, observer, caplog):
    def tidy():
        work(alias)
        connections[alias].close()

    thread = threading.Thread(target=tidy)
    thread.start()
    thread.join()
    run_threads(1, alias)
    [line] = until(lambda: lines(caplog))
    assert "1 of threads" in line
    assert "tidy" not in line
