"""OpenTelemetry: this app in INSTALLED_APPS measures the connections by the conventions' names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Measure the connections of this process with *meter_provider*, or with the global one.

    ``conn_guard.contrib.opentelemetry`` in INSTALLED_APPS calls it. Call it yourself, once, if your
    provider isn't the global one.
    """
    from conn_guard.contrib.opentelemetry import instruments

    instruments.create(meter_provider)
