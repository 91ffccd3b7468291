"""The app's configuration."""

from __future__ import annotations

from functools import cache

from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured


class OpenTelemetryConfig(AppConfig):
    """Measures the connections with the global meter provider."""

    name = "conn_guard.contrib.opentelemetry"
    label = "conn_guard_opentelemetry"
    verbose_name = "conn_guard metrics for OpenTelemetry"

    def ready(self) -> None:
        """Measure from now on. Raises ImproperlyConfigured where the API package is missing."""
        try:
            import opentelemetry.metrics  # noqa: F401
        except ImportError:
            raise ImproperlyConfigured(
                "'conn_guard.contrib.opentelemetry' in INSTALLED_APPS needs the package"
                " opentelemetry-api: type pip install 'conn-guard[opentelemetry]'."
            ) from None
        _instrument_once()


@cache
def _instrument_once() -> None:
    from conn_guard.contrib.opentelemetry import instrument

    instrument()
