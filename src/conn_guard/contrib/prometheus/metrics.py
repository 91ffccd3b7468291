"""The metrics of connections in prometheus_client's default registry.

One process: a collector reads the counts when it is scraped. In prometheus_client's multiprocess
mode no collector of a process is asked, so each event is written to the process's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from django.conf import settings
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.values import ValueClass

from conn_guard.connections import events, tracking


class _Counter(NamedTuple):
    kind: events.Kind
    name: str
    meaning: str
    labels: tuple[str, ...] = ("alias",)


_OPEN = ("conn_guard_connections_open", "Connections that this application has open.")
_COUNTERS = (
    _Counter("opened", "conn_guard_connections_opened_total", "Connections that were opened."),
    _Counter(
        "closed",
        "conn_guard_connections_closed_total",
        "Connections that ended, by the reason.",
        ("alias", "reason"),
    ),
    _Counter(
        "held_too_long",
        "conn_guard_connections_held_too_long_total",
        "Connections that were held for longer than REPORT_HELD_FOR.",
    ),
    _Counter(
        "replaced",
        "conn_guard_connections_replaced_total",
        "Connections that the engine replaced because the server had ended their session.",
    ),
    _Counter(
        "never_closed",
        "conn_guard_responses_never_closed_total",
        "Responses that the web server never closed.",
        (),
    ),
)


@cache
def register() -> None:
    """Add the metrics to the default registry, once, and count from now on."""
    if ValueClass._multiprocess:
        tracking.start(_written_to_files())
    else:
        tracking.start()
        REGISTRY.register(_Connections())


class _Connections(Collector):
    """Reads the counts of this process; it asks no database and waits for nothing."""

    def describe(self) -> Iterator[Metric]:
        """Yield the families, without a sample."""
        yield GaugeMetricFamily(*_OPEN, labels=["alias"])
        for each in _COUNTERS:
            yield CounterMetricFamily(each.name, each.meaning, labels=each.labels)

    def collect(self) -> Iterator[Metric]:
        """Yield the families with the counts of this moment."""
        totals = {**dict.fromkeys(_expected(), 0), **events.totals()}
        open_now = dict.fromkeys((alias for kind, alias, _ in totals if kind == "opened"), 0)
        for (kind, alias, _), total in totals.items():
            if kind in ("opened", "closed"):
                open_now[alias] = open_now.get(alias, 0) + (total if kind == "opened" else -total)
        gauge = GaugeMetricFamily(*_OPEN, labels=["alias"])
        for alias, value in open_now.items():
            gauge.add_metric([alias], value)
        yield gauge
        for each in _COUNTERS:
            family = CounterMetricFamily(each.name, each.meaning, labels=each.labels)
            for (kind, *values), total in totals.items():
                if kind == each.kind:
                    family.add_metric(values[: len(each.labels)], total)
            yield family


def _written_to_files() -> Callable[[events.Event], None]:
    """Return a listener that adds each event to prometheus_client's own metrics."""
    # Live: prometheus_client forgets the file of a process that ended.
    gauge = Gauge(*_OPEN, ["alias"], multiprocess_mode="livesum")
    counters = {each.kind: Counter(each.name, each.meaning, each.labels) for each in _COUNTERS}
    labels = {each.kind: len(each.labels) for each in _COUNTERS}

    def counter_of(kind: events.Kind, values: tuple[str, ...]) -> Counter:
        values = values[: labels[kind]]
        return counters[kind].labels(*values) if values else counters[kind]

    def write(event: events.Event) -> None:
        if event.kind not in counters:
            return
        counter_of(event.kind, (event.alias, event.reason)).inc()
        if event.kind == "opened":
            gauge.labels(event.alias).inc()
        elif event.kind == "closed":
            gauge.labels(event.alias).dec()

    for kind, alias, reason in _expected():
        counter_of(kind, (alias, reason))
        if kind == "opened":
            gauge.labels(alias)
    return write


def _expected() -> Iterator[events.Key]:
    """Yield the counts that are exported from the start: a rise from nothing is no rate."""
    for alias, each in settings.DATABASES.items():
        if each.get("ENGINE"):
            yield "opened", alias, ""
            for reason in events.REASONS:
                yield "closed", alias, reason
            yield "held_too_long", alias, ""
            yield "replaced", alias, ""
    yield "never_closed", "", ""
