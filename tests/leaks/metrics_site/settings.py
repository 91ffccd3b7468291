"""The settings of the leaky project, with metrics."""

import os

from tests.leaks.leaky_site.settings import *  # noqa: F403
from tests.leaks.leaky_site.settings import INSTALLED_APPS

ROOT_URLCONF = "tests.leaks.metrics_site.urls"
EXPORTER = os.environ.get("LEAKS_EXPORTER", "prometheus")
INSTALLED_APPS += [f"conn_guard.contrib.{EXPORTER}"]
if EXPORTER == "opentelemetry":
    from tests.leaks.metrics_site import guide

    guide.run("opentelemetry")
