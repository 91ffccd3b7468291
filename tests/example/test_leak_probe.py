"""The probe finds the leaks of the example on each server, and clears what doesn't leak."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import django
import environ
import httpx
import pytest
from django.db import connections

from conn_guard.probe import Options, probe_urls
from tests.example.conftest import MANAGE
from tests.leaks.servers import ASGI_APPLICATION, SERVERS, WSGI_APPLICATION
from tests.support.polling import until
from tests.support.programs import free_port, is_open

pytest.importorskip("aiohttp")

CLEAN = "/api/tasks/1/export"
THREADS = "/api/tasks/1/statistics"
DOWNLOAD = "/api/assets/1/download"
# Where a body is shorter than its Content-Length, their send raises: Django never ends the request.
RAISING = ("uvicorn", "hypercorn")
SERVED = [
    "uvicorn",
    "gunicorn-sync",
    "gunicorn-gthread",
    "gunicorn-gevent",
    "daphne",
    "hypercorn",
    "granian",
    "runserver",
]


@contextmanager
def serving(stage, name: str, guard: str = "off", **environment: str) -> Iterator[str]:
    """Run the example on the server *name* and give its address."""
    port = free_port()
    examples = {
        ASGI_APPLICATION: "example.asgi:application",
        WSGI_APPLICATION: "example.wsgi:application",
        "on": "auto",  # uvicorn's lifespan, which Django's own application has not
    }
    command = [examples.get(each, each) for each in SERVERS[name].command(sys.executable, port)]
    process = subprocess.Popen(
        command,
        cwd=MANAGE.parent,
        env={**stage.environment, "EXAMPLE_GUARD": guard, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: is_open(port) or process.poll() is not None, timeout=60)
        assert process.poll() is None
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def token(stage) -> str:
    """The token of a user, which holds on each server."""
    with serving(stage, "uvicorn", "app") as address:
        who = {"username": "annotator", "password": stage.environment["SEED_PASSWORD"]}
        answer = httpx.post(f"{address}/api/login", json=who, timeout=30, trust_env=False)
        return answer.raise_for_status().json()["token"]


@pytest.fixture
def verdicts(stage, token, past_django):
    """Return a function that probes paths of a server and returns the verdict on each."""
    connections.settings["example"] = {
        **connections.settings["default"],
        **environ.Env.db_url_config(stage.environment["DATABASE_URL"]),
    }

    def probe(address: str, *paths: str) -> dict[str, str]:
        options = Options(
            requests=12,
            concurrency=4,
            headers={"Authorization": f"Token {token}"},
            settle=timedelta(seconds=0.5),
        )
        reports = probe_urls([f"{address}{path}" for path in paths], options, alias="example")
        print(*reports, sep="\n")  # noqa: T201 - shown where the test fails
        return {path: each.verdict.value for path, each in zip(paths, reports, strict=True)}

    yield probe
    del connections.settings["example"]


@pytest.mark.parametrize("name", SERVED)
def test_each_leak_is_found_and_the_rest_is_cleared(stage, verdicts, name):
    expected = {
        CLEAN: "clean",
        DOWNLOAD: "leaks" if name in RAISING else "clean",
        THREADS: "leaks",
    }
    with serving(stage, name) as address:
        assert verdicts(address, *expected) == expected


@pytest.mark.parametrize("guard", ["app", "middleware", "engine"])
def test_with_conn_guard_no_url_leaks(stage, verdicts, guard):
    expected = dict.fromkeys([CLEAN, DOWNLOAD, THREADS], "clean")
    with serving(stage, "uvicorn", guard) as address:
        assert verdicts(address, *expected) == expected


def test_sessions_that_conn_max_age_keeps_are_no_leak(stage, verdicts):
    url = f"{stage.environment['DATABASE_URL']}?CONN_MAX_AGE=60"
    with serving(stage, "gunicorn-gthread", DATABASE_URL=url) as address:
        assert verdicts(address, CLEAN) == {CLEAN: "keeps"}


@pytest.mark.skipif(django.VERSION < (5, 1), reason="Django has no pool before 5.1")
def test_sessions_that_djangos_pool_keeps_are_no_leak(stage, verdicts, tmp_path):
    pytest.importorskip("psycopg_pool")
    (tmp_path / "pooled.py").write_text(
        "from example.settings import *\nDATABASES['default']['OPTIONS']['pool'] = True\n"
    )
    path = os.pathsep.join([str(tmp_path), stage.environment["PYTHONPATH"]])
    environment = {"DJANGO_SETTINGS_MODULE": "pooled", "PYTHONPATH": path}
    with serving(stage, "gunicorn-gthread", **environment) as address:
        assert verdicts(address, CLEAN) == {CLEAN: "keeps"}
