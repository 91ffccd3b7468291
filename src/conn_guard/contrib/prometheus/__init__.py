"""Prometheus: put this app into INSTALLED_APPS, and prometheus_client exports the connections."""
