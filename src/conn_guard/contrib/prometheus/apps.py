"""The app's configuration."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured


class PrometheusConfig(AppConfig):
    """Adds the metrics to prometheus_client's default registry."""

    name = "conn_guard.contrib.prometheus"
    label = "conn_guard_prometheus"
    verbose_name = "conn_guard metrics for Prometheus"

    def ready(self) -> None:
        """Add the metrics once. Raises ImproperlyConfigured where prometheus_client is missing."""
        try:
            import prometheus_client  # noqa: F401
        except ImportError:
            raise ImproperlyConfigured(
                "'conn_guard.contrib.prometheus' in INSTALLED_APPS needs the package"
                " prometheus-client: type pip install 'conn-guard[prometheus]'."
            ) from None
        from conn_guard.contrib.prometheus import metrics

        metrics.register()
