"""The probe as a process: signals, progress on a terminal, a full server, and no project."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from django.db import connections

from tests.support.own_server import own_server
from tests.support.polling import until
from tests.support.programs import end_all, free_port
from tests.support.web_server import WebServer, web_server

pytest.importorskip("aiohttp")

FEW = ("--requests", "12", "--concurrency", "3", "--settle", "0.4s")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with django_db_blocker.unblock(), own_server(roles={"app": "LOGIN"}) as server:
        yield server


@pytest.fixture
def site(server) -> Iterator[WebServer]:
    """A web server whose sessions are on a PostgreSQL with few slots."""
    lock = threading.Lock()

    def leaks(request):
        with lock:
            server.session().execute("SELECT relname FROM pg_class LIMIT 1")
        request.answer()

    def needs_a_slot(request):
        try:
            session = server.session()
        except connections["default"].Database.OperationalError:
            request.answer(500)
            return
        try:
            session.execute("SELECT pg_sleep(0.2)")
            request.answer()
        finally:
            session.close()

    with web_server({"/leaks": leaks, "/needs-a-slot": needs_a_slot}) as web:
        yield web


@pytest.fixture
def start(server, tmp_path) -> Iterator[Start]:
    """Return a function that starts ``conn-guard probe`` on the server."""
    running: list[subprocess.Popen[str]] = []
    url = f"postgresql://app@{server.server.host}:{server.server.port}/postgres"

    def run(*arguments: str, **streams: object) -> subprocess.Popen[str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PG", "DATABASE_URL", "DJANGO_SETTINGS_MODULE"))
        }
        path = os.pathsep.join(each for each in sys.path if each)
        process = subprocess.Popen(
            [sys.executable, "-m", "conn_guard", "probe", *arguments],
            cwd=tmp_path,
            env={"DATABASE_URL": url, **inherited, "PYTHONPATH": path},
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        )
        running.append(process)
        return process

    yield run
    end_all(running)


def ended(process):
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def test_a_probe_without_a_project_says_what_to_install(start, site):
    code, stdout, stderr = ended(start(site.url("/leaks"), *FEW, "--requests", "6"))
    assert code == 3
    assert re.fullmatch(r"CommandError: Leaks: 1 of 1\. .*\n", stderr)
    assert stdout.splitlines()[-1] == (
        "In the server's settings, add 'conn_guard' to INSTALLED_APPS and"
        " 'conn_guard.middleware.ConnectionGuardMiddleware' as the first of MIDDLEWARE; if that is"
        " not enough, set ENGINE = 'conn_guard.engine.postgresql'."
    )


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_probe_that_is_stopped_reports_what_it_saw(start, site, asked):
    hangs = threading.Event()

    def hangs_later(request):
        if site.asked.total() > 5:
            hangs.wait()
        request.answer()

    site.views["/later"] = hangs_later
    process = start(site.url("/later"), site.url("/leaks"), *FEW, "--format", "json")
    until(lambda: site.asked.total() > 7, timeout=30)
    process.send_signal(asked)
    code, stdout, stderr = ended(process)
    hangs.set()
    assert (code, stderr) == (128 + asked, f"CommandError: Stopped by {asked.name}.\n")
    event, summary = map(json.loads, stdout.splitlines())
    assert (event["verdict"], event["why"]) == ("unclear", "stopped after 5 requests")
    assert (summary["unclear"], summary["exit"]) == (1, 128 + asked)


def test_a_terminal_sees_the_progress(start, site):
    ours, theirs = pty.openpty()
    process = start(site.url("/leaks"), *FEW, "--requests", "6", stderr=theirs)
    code, stdout, _ = ended(process)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert code == 3
    assert re.search(r"\r\[#+\.*\] \d+/12 http://", shown)
    assert "[" not in stdout


def test_a_load_above_the_free_slots_is_unclear_and_says_so(start, site):
    options = ("--requests", "40", "--concurrency", "40", "--settle", "0.4s", "--format", "json")
    code, stdout, stderr = ended(start(site.url("/needs-a-slot"), *options))
    event = json.loads(stdout.splitlines()[0])
    assert (code, event["verdict"]) == (4, "unclear")
    assert re.search(r" answered 500; all \d+ slots of the database server were taken: ", stderr)
    assert event["peak"] < event["slots_total"] <= event["peak"] + 2


def test_a_database_that_goes_away_is_no_connection(start, site, server):
    probes = "SELECT pid FROM pg_stat_activity WHERE application_name = 'conn_guard:leak_probe'"
    site.views["/ok"] = lambda request: request.answer()
    urls = map(site.url, ("/leaks", "/ok"))
    # The later --requests counts.
    process = start(*urls, *FEW, "--requests", "5", "--timeout", "20s", "--format", "json")
    until(lambda: site.asked["GET", "/ok"], timeout=30)
    ((pid,),) = server.ask(probes)
    server.ask("SELECT pg_terminate_backend(%s)", [pid])
    code, stdout, stderr = ended(process)
    assert code == 5
    assert stderr.startswith("CommandError: default: the probe's own session ended")
    event, summary, error = map(json.loads, stdout.splitlines())
    assert (event["verdict"], summary["exit"]) == ("leaks", 5)
    assert (error["event"], error["exit"]) == ("error", 5)


def test_a_password_among_the_urls_is_never_shown(start):
    code, stdout, stderr = ended(start("postgresql://app:secret@127.0.0.1/shop"))
    assert (code, stdout) == (2, "")
    assert re.fullmatch(r"CommandError: .* is no URL\. Write .*\n", stderr)
    assert "secret@" not in stderr


def test_the_urls_password_is_never_shown(start):
    url = f"http://user:hidden@127.0.0.1:{free_port()}/?token=hidden"
    code, stdout, stderr = ended(start(url, *FEW))
    assert code == 5
    assert "hidden" not in stdout + stderr
