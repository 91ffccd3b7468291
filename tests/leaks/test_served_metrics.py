"""The metrics of real servers agree with pg_stat_activity while their connections leak."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit

import django
import pytest

from tests.leaks.clients import load
from tests.leaks.harness import Cell, Serving, environment_of, serving, sessions
from tests.leaks.servers import SERVERS, WSGI_APPLICATION, Server
from tests.support.own_server import Proxy
from tests.support.polling import until

parser = pytest.importorskip("prometheus_client.parser")
pytest.importorskip("opentelemetry.exporter.prometheus")

SITE = "tests.leaks.metrics_site"
WORKERS = 4
# Of every kind: failed sends, threads, executors, persistent, kept and dropped connections.
MECHANISMS = [
    "x_accel_redirect",
    "thread",
    "executor_per_request",
    "run_in_executor",
    "two_aliases",
    "copy_dropped",
    "traceback_kept",
    "bad_cookie",
    "sync_query",
]


class Exporter:
    """A server with its metrics and a count of its sessions from outside."""

    def __init__(self, server: Serving, count: Callable[[], int]) -> None:
        self.server = server
        self.sessions = count

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Return each value by the metric's name and its labels' values."""
        connection = HTTPConnection("127.0.0.1", self.server.address.port, timeout=30)
        try:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        assert answer.status == 200, text
        families = parser.text_string_to_metric_families(text)
        return {
            (name, *(value for label, value in labels.items() if not label.startswith("otel_"))): of
            for name, labels, of, *_ in (sample for each in families for sample in each.samples)
        }

    def total(self, name: str) -> float:
        return sum(value for (of, *_), value in self.scrape().items() if of == f"conn_guard_{name}")

    def agrees(self) -> bool:
        return self.total("connections_open") == self.sessions()

    def load(self, path: str, requests: int = 12) -> None:
        load(self.server.address, f"/{path}/", requests=requests, concurrency=4)
        self.server.wait_for_work()


@contextmanager
def exporter(
    server: Server, *, column: str = "app", setting: str = "0", url: str = "", **environment: str
) -> Iterator[Exporter]:
    url = url or os.environ["DATABASE_URL"]
    name = f"metrics-{os.getpid()}-{column}-{server.name}"
    cell = Cell("uvicorn", "sync_query", setting, column)
    environ = {
        **environment_of(cell, url, name, collector=False),
        "DJANGO_SETTINGS_MODULE": f"{SITE}.settings",
        **environment,
    }
    with (
        sessions(os.environ["DATABASE_URL"]) as count,
        serving(server, sys.executable, environ) as running,
    ):
        yield Exporter(running, lambda: count(name).total)


@pytest.mark.parametrize(
    ("server", "column", "setting"),
    [
        ("uvicorn", "django", "None"),
        ("uvicorn", "app", "0"),
        ("uvicorn", "engine", "0"),
        ("uvicorn", "engine", "pool"),
        ("gunicorn-gevent", "app", "0"),
    ],
)
def test_open_connections_agree_with_the_server(server, column, setting):
    if setting == "pool" and django.VERSION < (5, 1):
        pytest.skip("Django's pool came with 5.1")
    with exporter(SERVERS[server], column=column, setting=setting) as site:
        leaked = 0
        for mechanism in MECHANISMS if server == "uvicorn" else MECHANISMS[1:3]:
            site.load(mechanism)
            until(site.agrees)
            leaked = max(leaked, site.sessions())
        site.server.collect()
        until(site.agrees)
        if column == "django":
            assert leaked > 10
            assert site.scrape()["conn_guard_connections_closed_total", "default", "dropped"] > 0
        elif setting == "0":
            assert site.scrape()["conn_guard_connections_closed_total", "default", "owner"] > 0
            assert site.total("connections_opened_total") > 20


def test_workers_add_up_while_they_are_killed_and_replaced(tmp_path):
    server = Server(
        "gunicorn-4",
        "gunicorn",
        f"--bind 127.0.0.1:{{port}} --workers {WORKERS} --threads 4 --worker-class gthread"
        " --no-control-socket --config python:tests.leaks.metrics_site.gunicorn_conf"
        f" {WSGI_APPLICATION}",
    )
    counters = ("connections_opened_total", "connections_closed_total")
    with exporter(server, setting="60", PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as site:
        seen = dict.fromkeys(counters, 0.0)

        def agrees() -> bool:
            scraped = {name: site.total(name) for name in counters}
            assert all(scraped[name] >= seen[name] for name in counters)
            seen.update(scraped)
            return site.agrees()

        def workers() -> set[int]:
            """Return the workers whose open connections count."""
            return {int(path.stem.rpartition("_")[2]) for path in tmp_path.glob("gauge_livesum_*")}

        def kill(signum: int, number: int) -> None:
            before = workers()
            for pid in sorted(before)[:number]:
                os.kill(pid, signum)
            until(lambda: len(workers()) == WORKERS and len(workers() - before) == number, 30)

        until(lambda: len(workers()) == WORKERS)
        for signum, number in ((signal.SIGKILL, 2), (signal.SIGTERM, 1)):
            for mechanism in ("sync_query", "thread", "two_aliases"):
                site.load(mechanism, requests=40)
            until(agrees)
            assert site.sessions() > 2
            kill(signum, number)
            until(agrees)
        assert seen["connections_opened_total"] > 2 * 40


def test_a_database_that_goes_away_fails_no_scrape():
    parts = urlsplit(os.environ["DATABASE_URL"])
    with Proxy(parts.hostname, parts.port or 5432) as proxy:
        account, at, _ = parts.netloc.rpartition("@")
        url = parts._replace(netloc=f"{account}{at}127.0.0.1:{proxy.port}").geturl()
        with exporter(SERVERS["gunicorn-gthread"], setting="60", url=url) as site:
            site.load("sync_query")
            until(site.agrees)
            opened = site.total("connections_opened_total")
            assert opened > 0
            proxy.refuse()
            proxy.cut()
            site.load("sync_query")
            # Each thread notices that its connection has ended when it is used.
            assert site.total("connections_opened_total") == opened
            proxy.accept()
            site.load("sync_query", requests=40)
            until(site.agrees)
            assert site.total("connections_opened_total") > opened


def test_opentelemetry_reaches_prometheus():
    with exporter(SERVERS["uvicorn"], column="django", LEAKS_EXPORTER="opentelemetry") as site:
        site.load("thread")

        def agrees() -> bool:
            scraped = site.scrape()
            used = scraped.get(("db_client_connection_count", "default", "used"))
            return used is not None and used == site.sessions() > 0

        until(agrees)
        until(lambda: site.total("connections_opened_total") >= 12)
        site.server.collect()
        until(lambda: not site.sessions())
        use_time = ("db_client_connection_use_time_seconds_count", "default")
        until(lambda: site.scrape().get(use_time, 0) > 0)
