"""The instruments of OpenTelemetry's conventions for database clients, and those for leaks."""

from __future__ import annotations

import threading
from typing import get_args

import pytest
from django.db import OperationalError, connections

from conn_guard.connections import events, tracking
from tests.django.test_counting import DJANGOS, OURS
from tests.support.polling import until
from tests.support.programs import free_port

pytest.importorskip("opentelemetry.sdk.metrics")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.schemas import Schemas

from conn_guard.contrib.opentelemetry import instrument

POOL_NAME = "db.client.connection.pool.name"
PREFIX = "db.client.connection."


class Reading:
    """What the SDK's reader has collected, by name and by the attributes of the point."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        data = reader.get_metrics_data()
        scopes = data.resource_metrics[0].scope_metrics if data else []
        assert {scope.schema_url for scope in scopes} <= {Schemas.V1_44_0.value}
        self.metrics = {metric.name: metric for scope in scopes for metric in scope.metrics}

    def value(self, name, alias, **attributes):
        """Return the value of one point, the count of a histogram's; None if there is none."""
        if name not in self.metrics:
            return None
        wanted = {POOL_NAME: alias, **attributes}
        for point in self.metrics[name].data.data_points:
            if dict(point.attributes) == wanted:
                return point.count if hasattr(point, "count") else point.value
        return None


@pytest.fixture
def read(listened):
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    instrument(provider)
    yield lambda: Reading(reader)
    provider.shutdown()


def query(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def count(reading, alias, state):
    return reading.value(f"{PREFIX}count", alias, **{f"{PREFIX}state": state})


@pytest.mark.parametrize("engine", [DJANGOS, OURS])
def test_an_alias_without_a_pool(read, make_alias, engine):
    alias = make_alias(ENGINE=engine)
    query(alias)
    until(lambda: count(read(), alias, "used") == 1)
    connections[alias].close()
    until(lambda: read().value("conn_guard.connections.closed", alias,
                               **{"conn_guard.close.reason": "django"}) == 1)  # fmt: skip
    reading = read()
    assert count(reading, alias, "used") == 0
    assert count(reading, alias, "idle") is None
    assert reading.value("conn_guard.connections.opened", alias) == 1
    assert reading.value(f"{PREFIX}use_time", alias) == 1
    assert reading.value(f"{PREFIX}create_time", alias) == (1 if engine == OURS else None)
    assert reading.value(f"{PREFIX}max", alias) is None


@pytest.mark.parametrize("engine", [DJANGOS, OURS])
def test_an_alias_with_djangos_pool(read, pooled, engine):
    alias = pooled(engine, min_size=2, max_size=2, timeout=0.2)
    query(alias)
    pool = tracking.pools()[alias]
    until(lambda: pool.get_stats()["pool_available"] == 1)
    reading = read()
    assert (count(reading, alias, "used"), count(reading, alias, "idle")) == (1, 1)
    assert reading.value(f"{PREFIX}idle.max", alias) == 2
    assert reading.value(f"{PREFIX}idle.min", alias) == 2
    assert reading.value(f"{PREFIX}max", alias) == 2
    assert reading.value(f"{PREFIX}pending_requests", alias) == 0
    assert reading.value(f"{PREFIX}timeouts", alias) == 0
    other, third = (connections[alias].copy() for _ in range(2))
    other.ensure_connection()
    with pytest.raises(OperationalError):
        third.ensure_connection()
    assert read().value(f"{PREFIX}timeouts", alias) == 1
    other.close()
    connections[alias].close()
    until(lambda: read().value(f"{PREFIX}use_time", alias) == 2)
    reading = read()
    assert (count(reading, alias, "used"), count(reading, alias, "idle")) == (0, 2)
    assert reading.value(f"{PREFIX}wait_time", alias) == (2 if engine == OURS else None)
    assert reading.value(f"{PREFIX}create_time", alias) is None


def test_a_request_that_waits_for_the_pool_is_pending(read, pooled):
    alias = pooled(DJANGOS, min_size=1, max_size=1, timeout=20)
    query(alias)
    waiting = connections[alias].copy()
    waiting.inc_thread_sharing()
    thread = threading.Thread(target=waiting.ensure_connection)
    thread.start()
    until(lambda: read().value(f"{PREFIX}pending_requests", alias) == 1)
    connections[alias].close()
    thread.join()
    assert read().value(f"{PREFIX}pending_requests", alias) == 0
    waiting.close()


def shape(metric):
    return metric.unit, type(metric.data), getattr(metric.data, "is_monotonic", None)


def test_names_units_and_kinds_are_those_of_the_conventions(read, pooled):
    alias = pooled(OURS)
    query(alias)
    connections[alias].close()
    events.report("created", alias, seconds=0.1)
    until(lambda: read().value(f"{PREFIX}create_time", alias) == 1)
    ours = {name: each for name, each in read().metrics.items() if name.startswith("db.")}
    standard = MeterProvider(metric_readers=[reader := InMemoryMetricReader()])
    meter = standard.get_meter("the conventions")
    for name in ours:
        created = getattr(db_metrics, f"create_{name.replace('.', '_')}")(meter)
        (created.record if hasattr(created, "record") else created.add)(1)
    [resource] = reader.get_metrics_data().resource_metrics
    for convention in resource.scope_metrics[0].metrics:
        assert shape(ours[convention.name]) == shape(convention)
    expected = ("count", "idle.max", "idle.min", "max", "pending_requests", "timeouts",
                "create_time", "wait_time", "use_time")  # fmt: skip
    assert set(ours) == {f"{PREFIX}{name}" for name in expected}
    standard.shutdown()


def test_every_event_has_an_instrument(read, alias):
    for kind in get_args(events.Kind):
        events.report(kind, alias, "owner" if kind == "closed" else "", 0.1)
    until(lambda: read().value(f"{PREFIX}wait_time", alias) == 1)
    reading = read()
    for name in ("opened", "held_too_long", "replaced"):
        assert reading.value(f"conn_guard.connections.{name}", alias) == 1
    assert reading.metrics["conn_guard.responses.never_closed"].unit == "{response}"


def test_the_server_goes_away_and_comes_back(read, make_alias, pooled):
    alias = pooled(OURS, min_size=0, timeout=0.3)
    address = {key: connections.settings[alias][key] for key in ("HOST", "PORT")}
    query(alias)
    connections[alias].close()
    connections[alias].close_pool()
    connections[alias].settings_dict.update(HOST="127.0.0.1", PORT=str(free_port()))
    with pytest.raises(OperationalError):
        query(alias)
    until(lambda: count(read(), alias, "used") == 0)
    connections[alias].close_pool()
    connections[alias].settings_dict.update(address)
    query(alias)
    assert count(read(), alias, "used") == 1
