"""The addresses of the leaky project, and /metrics."""

from django.urls import path

from tests.leaks.leaky_site.urls import handler404, handler500, urlpatterns
from tests.leaks.metrics_site import guide

__all__ = ["handler404", "handler500", "urlpatterns"]

urlpatterns += [path("metrics", guide.run("view")["metrics"])]
