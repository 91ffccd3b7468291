"""REPORT_HELD_FOR: a connection that is held too long is reported with the stack that opened it."""

from __future__ import annotations

import gc
import os
import re
import threading

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import path

from conn_guard.engine import reclaimer

HELD = re.compile(
    r"The connection '(?P<alias>\w+)' to session (?P<session>\d+) is held for \d+\.\d s by process"
    r" (?P<process>\d+), "
    r"view (?P<view>[^.]\S*(?: \(\w+\))?)\. It was opened by:\n(?P<stack>.*)"
    r"That thread (?P<now>.*)",
    re.DOTALL,
)


@pytest.fixture
def reports(caplog):
    """Return a function that returns the messages logged on conn_guard.leaks."""
    return lambda: [
        record.getMessage() for record in caplog.records if record.name == "conn_guard.leaks"
    ]


@pytest.fixture(autouse=True)
def _report(settings):
    settings.CONN_GUARD = {"REPORT_HELD_FOR": 0.05}


def open_it(alias):
    return alias.pid()


def test_a_held_connection_is_reported_once_with_its_opener_and_again_when_closed(
    guarded, reports, until
):
    pid = open_it(guarded)
    (report,) = until(reports)
    match = HELD.fullmatch(report)
    assert (match["alias"], int(match["session"]), int(match["process"])) == (
        guarded.name,
        pid,
        os.getpid(),
    )
    assert match["view"] == "unknown"
    frames = match["stack"].split('  File "')
    assert "in open_it\n    return alias.pid()" in frames[-3]
    assert "in query\n    with self.wrapper.cursor()" in frames[-1], (
        "the engine and Django's backends are left out"
    )
    guarded.query()
    guarded.wrapper.close()
    closed = until(lambda: reports()[1:])
    told = (
        r"The connection '\w+' to session \d+, held too long, was closed after all, after"
        r" \d+\.\d s\."
    )
    assert len(closed) == 1
    assert re.fullmatch(told, closed[0])


def test_the_view_is_named(guarded, reports, until, settings, worker):
    def view(request):
        return HttpResponse(guarded.query())

    settings.ALLOWED_HOSTS = ["*"]
    settings.CONN_GUARD = {"REPORT_HELD_FOR": 0.05}
    settings.MIDDLEWARE = ["conn_guard.middleware.ConnectionGuardMiddleware"]
    settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": [path("", view, name="home")]})
    worker(lambda: WSGIHandler()(RequestFactory().get("/").environ, lambda *args: None).close())
    assert "view (home)" in HELD.fullmatch(until(reports)[0])["view"]


@pytest.mark.parametrize("end", ["thread", "drop"])
def test_the_end_of_a_thread_or_wrapper_is_reported_as_well(guarded, reports, until, end):
    if end == "drop":
        dropped = guarded.wrapper.copy()
        dropped.ensure_connection()
        until(reports)
        del dropped
        gc.collect()
    else:
        release = threading.Event()
        thread = threading.Thread(target=lambda: (guarded.query(), release.wait(30)))
        thread.start()
        until(reports)
        release.set()
        thread.join()
    assert "closed after all" in until(lambda: reports()[1:])[0]


def test_an_end_is_reported_once(guarded, reports, until):
    dropped = guarded.wrapper.copy()
    dropped.ensure_connection()
    until(reports)
    dropped.close()
    until(lambda: reports()[1:])
    del dropped
    gc.collect()
    settled = threading.Event()
    reclaimer.submit(settled.set)
    assert settled.wait(10)
    assert len(reports()) == 2


def test_a_connection_that_is_closed_in_time_is_not_reported(guarded, reports, until, settings):
    settings.CONN_GUARD = {"REPORT_HELD_FOR": 30}
    guarded.query()
    guarded.wrapper.close()
    settings.CONN_GUARD = {"REPORT_HELD_FOR": 0.05}
    other = open_it(guarded)
    assert f"session {other} " in until(reports)[0]
    assert len(reports()) == 1


def test_nothing_is_recorded_where_no_report_is_wanted(guarded, settings):
    settings.CONN_GUARD = {}
    guarded.query()
    assert guarded.wrapper.lease.opener is None


def test_the_report_shows_where_the_holder_is_now(guarded, reports, until, worker):
    done = threading.Event()

    def hold():
        guarded.query()
        wait_here(done)

    holder = threading.Thread(target=hold)
    holder.start()
    now = HELD.fullmatch(until(reports)[0])["now"]
    done.set()
    holder.join()
    assert now.startswith("is now at:\n")
    assert "in wait_here\n    done.wait(30)" in now


def wait_here(done):
    done.wait(30)


def test_a_report_of_an_ended_thread_says_so(guarded, reports, until):
    kept = []
    holder = threading.Thread(target=lambda: kept.append(guarded.wrapper.copy()))
    holder.start()
    holder.join()
    kept[0].inc_thread_sharing()
    opener = threading.Thread(target=kept[0].ensure_connection)
    opener.start()
    opener.join()
    assert HELD.fullmatch(until(reports)[0])["now"] == "has ended."
    kept[0].close()
