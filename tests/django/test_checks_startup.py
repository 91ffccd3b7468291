"""The findings that a process reports: in a command, at a server's start, and while it serves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.core.signals import request_started
from django.db import connections

from conn_guard.checks import runtime
from tests.django.checks_project import CAN_POOL
from tests.support.polling import until
from tests.support.programs import free_port, is_open

SITE = "tests.django.checks_site"
ROOT = Path(__file__).parents[2]
GUNICORN = [
    "gunicorn",
    f"{SITE}:wsgi",
    "--workers",
    "1",
    "--no-control-socket",
    "--bind",
    "127.0.0.1:{port}",
]
UVICORN = ["uvicorn", f"{SITE}:asgi", "--log-level", "warning", "--port", "{port}"]
RUNSERVER = ["django", "runserver", "--noreload", "127.0.0.1:{port}"]
SERVERS = {"gunicorn": GUNICORN, "uvicorn": UVICORN}
KEPT = {"CONN_MAX_AGE": 900}


class Site:
    """A running site: its port, and the findings that it has logged."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def get(self, count: int = 1) -> None:
        for _ in range(count):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=20) as response:
                assert response.read().isdigit()

    def said(self) -> list[str]:
        """Return the level and the id of each line of the log."""
        return re.findall(r"^(\w+ conn_guard\.\w\d+): ", self.log.read_text(), re.MULTILINE)


@pytest.fixture
def environment(django_db_setup) -> Callable[..., dict[str, str]]:
    """Return a function that gives the environment of a site with changed settings."""
    default = connections["default"].settings_dict
    url = f"postgres://{default['USER']}:{default['PASSWORD']}@{default['HOST']}:{default['PORT']}/{default['NAME']}"

    def make(**changes: object) -> dict[str, str]:
        mine = {
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": SITE,
            "CHECKS_SITE": json.dumps(changes),
        }
        return {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
            "PYTHONWARNINGS": "default",
            **mine,
        }

    return make


@pytest.fixture
def serve(environment, tmp_path) -> Iterator[Callable[..., Site]]:
    """Return a function that starts a server and gives its site when it answers or has ended."""
    started = []

    def start(command: list[str], **changes: object) -> Site:
        module = command[0]
        if not find_spec(module):
            pytest.skip(f"{module} is not installed")
        port = free_port()
        log = tmp_path / f"{len(started)}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", *(word.format(port=port) for word in command)],
                env=environment(**changes),
                stdout=stderr,
                stderr=stderr,
                cwd=tmp_path,
            )
        started.append(process)
        until(lambda: is_open(port) or process.poll() is not None, timeout=30)
        return Site(process, port, log)

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
def run(environment, tmp_path) -> Callable[..., str]:
    """Return a function that runs a program in a process of its own and gives its stderr."""

    def run(program: str, **changes: object) -> str:
        program = (
            "import django; django.setup(); from tests.django import checks_site as"
            f" site\n{program}"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment(**changes),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


# At the start


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_says_once_what_the_checks_find(serve, server):
    site = serve(SERVERS[server], DEFAULT={"CONN_MAX_AGE": -1})
    until(site.said)
    assert site.said() == ["WARNING conn_guard.W103"]
    assert (
        "WARNING conn_guard.W103: DATABASES['default']['CONN_MAX_AGE'] is -1, which acts as 0."
        " Write None for no limit, or 0 to close after each request. For more, type"
        " conn-guard check W103. See docs/reference/checks.md#w103\n" in site.log.read_text()
    )
    site.get(3)
    assert site.said() == ["WARNING conn_guard.W103"]


@pytest.mark.parametrize("server", SERVERS)
def test_without_the_middleware_the_first_request_says_it(serve, server):
    site = serve(
        SERVERS[server],
        DEFAULT={"CONN_MAX_AGE": -1},
        MIDDLEWARE=[],
        CONN_GUARD={"CHECK_AT_STARTUP": "raise"},
    )
    assert site.said() == []
    site.get(3)
    assert site.said() == ["WARNING conn_guard.W103", "INFO conn_guard.I201"]


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_that_is_to_raise_does_not_start_on_an_error(serve, server):
    site = serve(
        SERVERS[server], DEFAULT={"CONN_MAX_AGE": "60"}, CONN_GUARD={"CHECK_AT_STARTUP": "raise"}
    )
    assert until(lambda: site.process.poll(), timeout=30) != 0
    assert site.said() == ["ERROR conn_guard.E101"]
    assert (
        "django.core.exceptions.ImproperlyConfigured: conn_guard.E101:"
        " DATABASES['default']['CONN_MAX_AGE'] is '60'" in (site.log.read_text())
    )


def test_a_second_start_in_the_same_process_is_stopped_too(run):
    assert "conn_guard.E101" in run(
        "from django.core.exceptions import ImproperlyConfigured\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        site.wsgi\n"
        "    except ImproperlyConfigured:\n"
        "        continue\n"
        "    raise SystemExit('started')\n",
        DEFAULT={"CONN_MAX_AGE": "60"},
        CONN_GUARD={"CHECK_AT_STARTUP": "raise"},
    )


def test_a_warning_stops_no_server(serve):
    site = serve(GUNICORN, DEFAULT=KEPT, CONN_GUARD={"CHECK_AT_STARTUP": "raise"})
    site.get()
    assert site.said() == ["WARNING conn_guard.W122"]


def test_none_and_silenced_checks_are_not_said(serve):
    silent = serve(GUNICORN, DEFAULT=KEPT, CONN_GUARD={"CHECK_AT_STARTUP": None})
    silenced = serve(
        GUNICORN,
        DEFAULT={"CONN_MAX_AGE": "60"},
        SILENCED_SYSTEM_CHECKS=["conn_guard.E101"],
        CONN_GUARD={"CHECK_AT_STARTUP": "raise"},
        MIDDLEWARE=["conn_guard.middleware.ConnectionGuardMiddleware"] * 2,
    )
    silent.get()
    until(lambda: is_open(silenced.port))
    until(silenced.said)
    assert silent.said() == []
    assert silenced.said() == ["WARNING conn_guard.W202"]


def test_what_a_command_has_printed_is_not_logged(serve):
    site = serve(RUNSERVER, DEFAULT=KEPT)
    site.get(2)
    assert site.log.read_text().count("conn_guard.W122") == 1
    assert site.said() == []


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["check"], True),
        (["check", "--deploy"], True),
        (["migrate", "--check"], False),
        (["showmigrations"], False),
        (["test", "--keepdb", "no_such_package"], False),
    ],
    ids=str,
)
def test_I201_is_said_by_check_and_not_by_other_commands(environment, tmp_path, command, told):
    done = subprocess.run(
        [sys.executable, "-m", "django", *command],
        env=environment(MIDDLEWARE=[], DEFAULT={"CONN_MAX_AGE": -1}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "conn_guard.W103" in done.stderr
    assert ("conn_guard.I201" in done.stderr) is told


def test_I201_is_said_to_code_that_runs_the_checks_itself(run):
    assert "I201" in run(
        "import sys\n"
        "from django.core.checks import run_checks\n"
        "from django.core.management import call_command\n"
        "assert 'conn_guard.I201' in [message.id for message in run_checks()]\n"
        "call_command('check')\n",
        MIDDLEWARE=[],
    )


@pytest.mark.parametrize("reload", [True, False], ids=["reload", "noreload"])
def test_runserver_logs_I201_once_for_each_process_that_serves(serve, reload):
    command = [word for word in RUNSERVER if not (reload and word == "--noreload")]
    site = serve(command, DEFAULT=KEPT, MIDDLEWARE=[])
    site.get(3)
    assert site.log.read_text().count("conn_guard.W122") == 1
    assert site.log.read_text().count("conn_guard.I201") == 1
    assert site.said() == ["INFO conn_guard.I201"]


def test_a_command_that_skips_its_checks_leaves_them_to_the_log(serve):
    site = serve([*RUNSERVER, "--skip-checks"], DEFAULT=KEPT)
    site.get(2)
    assert site.said() == ["WARNING conn_guard.W122"]


@pytest.mark.parametrize("middleware", [True, False], ids=["with", "without"])
def test_djangos_test_client_is_no_server(run, middleware):
    changes = {} if middleware else {"MIDDLEWARE": []}
    assert "conn_guard" not in run(
        "import asyncio\n"
        "from django.test import AsyncClient, Client\n"
        "assert Client().get('/').status_code == 200\n"
        "assert asyncio.run(AsyncClient().get('/')).status_code == 200\n",
        DEFAULT=KEPT,
        **changes,
    )


def test_a_test_run_is_no_server(run):
    assert "conn_guard" not in run(
        "from django.test.utils import setup_test_environment\n"
        "setup_test_environment()\n"
        "site.wsgi\n"
        "from django.core.signals import request_started\n"
        "request_started.send(object, environ={})\n",
        DEFAULT=KEPT,
    )


def test_only_one_of_many_threads_speaks(run):
    said = run(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from django.core.signals import request_started\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    list(pool.map(lambda _: request_started.send(object, environ={}), range(64)))\n",
        DEFAULT=KEPT,
        MIDDLEWARE=[],
    )
    assert said.count("conn_guard.W122") == 1


def test_a_request_that_has_begun_is_not_stopped_by_an_error(run):
    said = run(
        "from django.core.signals import request_started\nassert [error for _, error in"
        " request_started.send_robust(object, environ={}) if error] == []\n",
        DEFAULT={"CONN_MAX_AGE": "60"},
        MIDDLEWARE=[],
        CONN_GUARD={"CHECK_AT_STARTUP": "raise"},
    )
    assert "ERROR conn_guard.E101" in said
    assert "could not run" not in said


def test_a_failing_check_fails_no_request(run):
    said = run(
        "from conn_guard.checks import startup\n"
        "startup._messages = lambda speak: 1 / 0\n"
        "from django.core.signals import request_started\n"
        "request_started.send(object, environ={})\n",
        MIDDLEWARE=[],
    )
    assert "ERROR The checks could not run.\n" in said


# While it serves


def served(count: int, kind: str) -> str:
    """Return a program that serves requests, each thread for one of them or for ten."""
    return (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from django.test import RequestFactory\n"
        "app = site.wsgi\n"
        "def serve(_):\n"
        "    body = app(RequestFactory().get('/').environ, lambda *args: None)\n"
        "    body.close()\n"
        f"for number in range({count}):\n"
        "    with ThreadPoolExecutor(1) as thread:\n"
        f"        list(thread.map(serve, range({1 if kind == 'dies' else 10})))\n"
    )


SETTINGS = {"DEFAULT": {"CONN_MAX_AGE": 900, "CONN_HEALTH_CHECKS": True}}


def test_persistence_that_never_serves_twice_is_told_once(run):
    said = run(served(130, "dies"), **SETTINGS)
    pool = ", and OPTIONS['pool'] if connections are to stay open" if CAN_POOL else ""
    assert said.splitlines() == [
        "WARNING conn_guard.W120: DATABASES['default']['CONN_MAX_AGE'] is 900, but 100 connections"
        " were opened for 100 requests: no later request finds a connection again. Write 0 for"
        f" CONN_MAX_AGE{pool}. For more, type conn-guard check W120."
        " See docs/reference/checks.md#w120"
    ]


def test_persistence_that_serves_is_not_worth_a_word(run):
    assert run(served(20, "lives on"), **SETTINGS) == ""
    assert run(served(130, "dies")) == ""


def test_asgi_is_told_where_the_settings_did_not_tell_it(serve):
    site = serve(UVICORN, **SETTINGS)
    assert site.said() == []
    site.get(3)
    assert site.said() == ["WARNING conn_guard.W120"]
    assert (
        "['CONN_MAX_AGE'] is 900, but this process serves ASGI: no later request finds"
        in site.log.read_text()
    )


def test_asgi_is_told_once_where_the_settings_tell_it(serve):
    site = serve(UVICORN, **SETTINGS, WSGI_APPLICATION=None, ASGI_APPLICATION=f"{SITE}.asgi")
    site.get(3)
    assert site.said() == ["WARNING conn_guard.W120"]
    assert "the project is served by ASGI" in site.log.read_text()


@pytest.mark.skipif(not find_spec("gevent"), reason="gevent is not installed")
def test_greenlets_are_told(serve):
    site = serve([*GUNICORN, "--worker-class", "gevent"], **SETTINGS)
    site.get(3)
    assert site.said() == ["WARNING conn_guard.W120"]
    assert "but this process runs a greenlet for each request" in site.log.read_text()


class Wrapper:
    """The attributes of a connection that a Watch reads, for counts without so many sessions."""

    alias = "default"
    vendor = "sqlite"
    settings_dict = {"ENGINE": "django.db.backends.sqlite3", "CONN_MAX_AGE": 60}  # noqa: RUF012


@pytest.fixture
def watch(monkeypatch, caplog) -> Iterator[runtime.Watch]:
    """Return a watch that speaks although a test is at work."""
    monkeypatch.setattr(runtime, "is_test", lambda sender=None: False)
    caplog.set_level("DEBUG", logger="conn_guard.checks")
    return runtime.Watch()


def serve_each(watch, *, connections, requests=1):
    for number in range(requests):
        watch.on_request(sender=object, environ={})
        if number < connections:
            watch.on_connection(connection=Wrapper())


def test_a_large_pool_of_threads_is_judged_after_its_first_connections(watch, caplog):
    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(120)]
        for _ in range(2):
            for thread in threads:
                thread.submit(serve_each, watch, connections=1).result()
        assert caplog.text == ""
        for thread in threads:
            thread.submit(serve_each, watch, connections=1).result()
        assert "360 connections were opened for 360 requests" in caplog.text


@pytest.mark.parametrize(("connections", "told"), [(89, False), (90, True)])
def test_nine_of_ten_requests_that_connect_are_too_many(watch, caplog, connections, told):
    serve_each(watch, connections=0, requests=100 - connections)
    serve_each(watch, connections=connections, requests=connections)
    assert ("conn_guard.W120" in caplog.text) is told
    assert ("reuse" not in watch.questions) is told


def test_a_process_that_has_used_its_connections_again_is_asked_no_more(watch, caplog):
    serve_each(watch, connections=1, requests=1000)
    assert "reuse" in watch.questions
    serve_each(watch, connections=1)
    assert "reuse" not in watch.questions
    serve_each(watch, connections=5000, requests=5000)
    assert caplog.text == ""


def test_the_requests_of_a_process_are_counted_up_to_a_thousand(watch):
    request_started.connect(watch.on_request, dispatch_uid="conn_guard.checks.runtime")
    for _ in range(1100):
        request_started.send(object, environ={})
    assert (watch.requests, watch.questions) == (1001, {"pooler"})


def test_a_pool_is_its_own_reuse(watch, caplog, monkeypatch):
    pooled = {
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": None,
        "OPTIONS": {"pool": True},
    }
    monkeypatch.setattr(Wrapper, "settings_dict", pooled)
    monkeypatch.setattr("django.VERSION", (6, 1))
    monkeypatch.setattr("conn_guard.checks.engines.is_importable", lambda name: True)
    serve_each(watch, connections=200, requests=200)
    assert caplog.text == ""


def test_a_pooler_is_told_by_the_pid_that_it_made_up(run, pgbouncer):
    # One made-up pid in a thousand looks like a process id, so one connection is not enough.
    query = (
        "from django.db import connection\nfor _ in range(4):\n    connection.ensure_connection()\n"
        "    connection.close()\n"
    )
    again = "from conn_guard.checks import runtime\nruntime._watch.aliases.clear()\n"
    address = pgbouncer("transaction").settings
    said = run((query + again) * 3, DEFAULT=address)
    assert (
        "INFO conn_guard.I302: DATABASES['default'] goes through a pooler: the pid received at"
        " login, " in said
    )
    assert run(query, DEFAULT=address).count("conn_guard.I302") <= 1
    assert run(query) == ""
    assert run(query, DEFAULT=address, CONN_GUARD={"POOLER": {"default": "transaction"}}) == ""
    assert run(query, DEFAULT=address, SILENCED_SYSTEM_CHECKS=["conn_guard.I302"]) == ""


@pytest.mark.parametrize(
    ("pid", "told"),
    [
        (1, False),
        (4194304, False),
        (4194305, True),
        (1431655765, True),
        (0, True),
        (-529813817, True),
    ],
)
def test_a_pid_that_no_process_has_is_a_poolers(watch, caplog, monkeypatch, pid, told):
    monkeypatch.setattr(Wrapper, "vendor", "postgresql")
    monkeypatch.setattr(
        Wrapper, "connection", SimpleNamespace(info=SimpleNamespace(backend_pid=pid)), raising=False
    )
    watch.on_connection(connection=Wrapper())
    assert ("conn_guard.I302" in caplog.text) is told


def test_an_odd_connection_stops_nothing(run):
    said = run(
        "from conn_guard.checks.runtime import Watch\nWatch().on_connection(connection=object())\n"
    )
    assert "ERROR The connection of None was not looked at.\n" in said
