"""The page that Prometheus scrapes."""

from django.http import HttpRequest, HttpResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with every metric of this process, without a query."""
    return HttpResponse(generate_latest(), content_type=CONTENT_TYPE_LATEST)
