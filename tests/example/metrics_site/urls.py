"""The addresses of the example, and /metrics."""

from django.http import HttpResponse
from django.urls import path
from example.urls import urlpatterns
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


def metrics(request):
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)


urlpatterns = [*urlpatterns, path("metrics", metrics)]
