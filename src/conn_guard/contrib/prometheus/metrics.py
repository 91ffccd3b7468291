"""The metrics of connections in prometheus_client's default registry.

One process: a collector reads the counts when it is scraped. In prometheus_client's multiprocess
mode no collector of a process is asked, so each event is written to the process's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache

from django.conf import settings
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.values import ValueClass

from conn_guard.connections import events, tracking

_OPEN = ("conn_guard_connections_open", "Connections that this application has open.")
_COUNTERS: Mapping[events.Kind, tuple[str, tuple[str, ...]]] = {
    "opened": ("conn_guard_connections_opened_total", ("alias",)),
    "closed": ("conn_guard_connections_closed_total", ("alias", "reason")),
    "held_too_long": ("conn_guard_connections_held_too_long_total", ("alias",)),
    "replaced": ("conn_guard_connections_replaced_total", ("alias",)),
    "never_closed": ("conn_guard_responses_never_closed_total", ()),
}


@cache
def register() -> None:
    """Add the metrics to the default registry, once, and count from now on."""
    if ValueClass._multiprocess:
        tracking.start(_written_to_files(REGISTRY))
    else:
        tracking.start()
        REGISTRY.register(_Connections())


class _Connections(Collector):
    """Reads the counts of this process; it asks no database and waits for nothing."""

    def describe(self) -> Iterator[Metric]:
        """Yield the families, without a sample."""
        yield GaugeMetricFamily(*_OPEN, labels=["alias"])
        for kind, (name, labels) in _COUNTERS.items():
            yield CounterMetricFamily(name, events.MEANINGS[kind], labels=labels)

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
        for kind, (name, labels) in _COUNTERS.items():
            family = CounterMetricFamily(name, events.MEANINGS[kind], labels=labels)
            for (counted, *values), total in totals.items():
                if counted == kind:
                    family.add_metric(values[: len(labels)], total)
            yield family


def _written_to_files(registry: CollectorRegistry) -> Callable[[events.Event], None]:
    """Return a listener that adds each event to prometheus_client's own metrics."""
    # Live: prometheus_client forgets the file of a process that ended.
    gauge = Gauge(*_OPEN, ["alias"], multiprocess_mode="livesum", registry=registry)
    counters = {
        kind: Counter(name, events.MEANINGS[kind], labels, registry=registry)
        for kind, (name, labels) in _COUNTERS.items()
    }

    def counter_of(kind: events.Kind, alias: str, reason: str) -> Counter:
        values = (alias, reason)[: len(_COUNTERS[kind][1])]
        return counters[kind].labels(*values) if values else counters[kind]

    def write(event: events.Event) -> None:
        if event.kind not in counters:
            return
        counter_of(event.kind, event.alias, event.reason).inc()
        if event.kind == "opened":
            gauge.labels(event.alias).inc()
        elif event.kind == "closed":
            gauge.labels(event.alias).dec()

    for kind, alias, reason in _expected():
        counter_of(kind, alias, reason)
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
