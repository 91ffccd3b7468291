"""The settings of the example, with metrics."""

from example.settings import *  # noqa: F403
from example.settings import INSTALLED_APPS

INSTALLED_APPS += ["conn_guard.contrib.prometheus"]
ROOT_URLCONF = "tests.example.metrics_site.urls"
