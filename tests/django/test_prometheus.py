"""The metrics of connections in prometheus_client's registry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import OperationalError, connections

from conn_guard.connections import events, tracking
from tests.support.polling import until
from tests.support.programs import free_port

ROOT = Path(__file__).parents[2]
NAMES = {
    "conn_guard_connections_open": {"alias"},
    "conn_guard_connections_opened_total": {"alias"},
    "conn_guard_connections_closed_total": {"alias", "reason"},
    "conn_guard_connections_held_too_long_total": {"alias"},
    "conn_guard_connections_replaced_total": {"alias"},
    "conn_guard_responses_never_closed_total": set(),
}


@pytest.fixture(params=["one process", "several processes"])
def registry(request, listened):
    """A registry with the metrics that a process of one, or of several, has."""
    prometheus_client = pytest.importorskip("prometheus_client")
    from conn_guard.contrib.prometheus import metrics

    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    if request.param == "one process":
        registry.register(metrics._Connections())
    else:
        tracking.start(metrics._written_to_files(registry))
    return registry


def samples(registry):
    return {
        sample.name: set(sample.labels)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def query(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def test_every_metric_is_there_from_the_start(registry):
    assert samples(registry) == NAMES
    closed = "conn_guard_connections_closed_total"
    for reason in events.REASONS:
        assert registry.get_sample_value(closed, {"alias": "lite", "reason": reason}) == 0


def test_values_follow_the_connections(registry, alias):
    def value(name, **labels):
        return registry.get_sample_value(f"conn_guard_{name}", {"alias": alias, **labels})

    query(alias)
    until(lambda: value("connections_open") == 1)
    connections[alias].close()
    until(lambda: value("connections_closed_total", reason="django") == 1)
    assert value("connections_open") == 0
    assert value("connections_opened_total") == 1
    events.report("held_too_long", alias)
    events.report("replaced", alias)
    until(lambda: value("connections_replaced_total") == 1)
    assert value("connections_held_too_long_total") == 1
    before = registry.get_sample_value("conn_guard_responses_never_closed_total")
    events.report("never_closed")
    name = "conn_guard_responses_never_closed_total"
    until(lambda: registry.get_sample_value(name) == before + 1)


def test_a_scrape_needs_no_database(registry, make_alias):
    alias = make_alias(PORT=str(free_port()), HOST="127.0.0.1")
    with pytest.raises(OperationalError):
        query(alias)
    assert samples(registry) == NAMES


def test_promtool_finds_no_fault(registry, alias, needs_program):
    from prometheus_client import generate_latest

    query(alias)
    done = subprocess.run(
        [needs_program("promtool"), "check", "metrics"],
        input=generate_latest(registry),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a process of its own, where it sets up Django."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SET_UP = """
from django.conf import settings
settings.INSTALLED_APPS += {apps}
import django
django.setup()
from django.apps import apps
from django.db import connections
"""


@pytest.mark.parametrize(
    ("app", "module", "distribution"),
    [("prometheus", "prometheus_client", "prometheus-client"),
     ("opentelemetry", "opentelemetry", "opentelemetry-api")],
)  # fmt: skip
def test_a_missing_package_is_named_with_the_command_that_installs_it(app, module, distribution):
    blocked = f"import sys; sys.modules[{module!r}] = None\n"
    done = run(blocked + SET_UP.format(apps=[f"conn_guard.contrib.{app}"]))
    assert done.stderr.splitlines()[-1] == (
        f"django.core.exceptions.ImproperlyConfigured: 'conn_guard.contrib.{app}' in INSTALLED_APPS"
        f" needs the package {distribution}: type pip install 'conn-guard[{app}]'."
    )


def test_the_app_stands_beside_django_prometheus():
    pytest.importorskip("django_prometheus")
    done = run(
        """
from django.conf import settings
settings.DATABASES["default"]["ENGINE"] = "django_prometheus.db.backends.postgresql"
"""
        + SET_UP.format(apps=["django_prometheus", "conn_guard.contrib.prometheus"])
        + """
import time
from django.test import RequestFactory
from django_prometheus.exports import ExportToDjangoView
connections["default"].ensure_connection()
apps.get_app_config("conn_guard_prometheus").ready()  # once more, as override_settings calls it
deadline = time.monotonic() + 10
while True:
    text = ExportToDjangoView(RequestFactory().get("/metrics")).content.decode()
    if 'conn_guard_connections_open{alias="default"} 1.0' in text or time.monotonic() > deadline:
        break
    time.sleep(0.02)
print(text)
"""
    )
    assert done.returncode == 0, done.stderr
    assert 'conn_guard_connections_open{alias="default"} 1.0' in done.stdout
    assert 'django_db_new_connections_total{alias="default",vendor="postgresql"} 1.0' in done.stdout
