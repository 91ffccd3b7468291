"""The instruments: those of the semantic conventions for database clients, and those for leaks.

**Source:** OpenTelemetry's semantic conventions 1.44, database client metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

import conn_guard
from conn_guard.connections import events, tracking

_SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
_POOL_NAME = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
_REASON = "conn_guard.close.reason"

_Observe = Callable[[CallbackOptions], Iterable[Observation]]

# Name, unit, description, and the key of psycopg_pool's get_stats(). That pool keeps up to its
# max_size at rest, until they rested for its max_idle.
_OF_POOLS = (
    ("idle.max", "{connection}", "The maximum number of idle open connections.", "pool_max"),
    ("idle.min", "{connection}", "The minimum number of idle open connections.", "pool_min"),
    ("max", "{connection}", "The maximum number of open connections.", "pool_max"),
    ("pending_requests", "{request}", "Requests that wait for a connection.", "requests_waiting"),
)
# The SDK's own boundaries are for milliseconds; a connection may be used for hours.
_BOUNDARIES_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 600, 3600)
_TIMES: tuple[tuple[events.Kind, str, str], ...] = (
    ("created", "create_time", "The time it took to create a new connection."),
    ("waited", "wait_time", "The time it took to get a connection from the pool."),
    ("used", "use_time", "The time between taking a connection and giving it back."),
)


def create(meter_provider: MeterProvider | None) -> None:
    """Create the instruments on *meter_provider*, or on the global one, and count from now on."""
    meter = get_meter("conn_guard", conn_guard.__version__, meter_provider, _SCHEMA)
    meter.create_observable_up_down_counter(
        "db.client.connection.count",
        [_observe_count],
        "{connection}",
        "The number of connections in the state.",
    )
    for name, unit, description, key in _OF_POOLS:
        meter.create_observable_up_down_counter(
            f"db.client.connection.{name}", [_of_pools(key)], unit, description
        )
    meter.create_observable_counter(
        "db.client.connection.timeouts",
        [_of_pools("requests_errors")],
        "{timeout}",
        "Requests for a connection that the pool refused or that waited for too long.",
    )
    for kind, meaning in events.MEANINGS.items():
        noun = "response" if kind == "never_closed" else "connection"
        meter.create_observable_counter(
            f"conn_guard.{noun}s.{kind}", [_of_events(kind)], f"{{{noun}}}", meaning
        )
    histograms = {
        kind: meter.create_histogram(
            f"db.client.connection.{name}",
            "s",
            description,
            explicit_bucket_boundaries_advisory=_BOUNDARIES_S,
        )
        for kind, name, description in _TIMES
    }

    def record(event: events.Event) -> None:
        histogram = histograms.get(event.kind)
        if histogram is not None:
            histogram.record(event.seconds, {_POOL_NAME: event.alias})

    tracking.start(record)


def _observe_count(_: CallbackOptions) -> Iterator[Observation]:
    pools = tracking.pools()
    used = tracking.in_use()
    opened = {alias for kind, alias, _ in events.totals() if kind == "opened"}
    for alias in opened | set(used):
        yield Observation(used[alias], {_POOL_NAME: alias, _STATE: "used"})
    for alias, pool in pools.items():
        idle = pool.get_stats()["pool_available"]
        yield Observation(idle, {_POOL_NAME: alias, _STATE: "idle"})


def _of_pools(key: str) -> _Observe:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for alias, pool in tracking.pools().items():
            # A count that never rose is missing.
            yield Observation(pool.get_stats().get(key, 0), {_POOL_NAME: alias})

    return observe


def _of_events(kind: events.Kind) -> _Observe:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for (counted, alias, reason), total in events.totals().items():
            if counted == kind:
                attributes: dict[str, Any] = {_POOL_NAME: alias} if alias else {}
                yield Observation(total, {**attributes, **({_REASON: reason} if reason else {})})

    return observe
