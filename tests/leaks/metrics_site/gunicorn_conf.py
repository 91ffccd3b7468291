"""Gunicorn's configuration, from the guide."""

from tests.leaks.metrics_site import guide

child_exit = guide.run("gunicorn")["child_exit"]
