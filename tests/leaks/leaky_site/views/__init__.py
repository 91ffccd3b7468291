"""One view for each way to leave a session behind, named as in `tests.leaks.mechanisms`."""

from tests.leaks.leaky_site.views import (
    after,
    errors,
    failed_sends,
    held,
    long_threads,
    measured,
    requests,
    short_threads,
    streams,
    transactions,
)
from tests.leaks.leaky_site.views.base import VIEWS, query, sync_only_middleware

__all__ = [
    "VIEWS",
    "after",
    "errors",
    "failed_sends",
    "held",
    "long_threads",
    "measured",
    "query",
    "requests",
    "short_threads",
    "streams",
    "sync_only_middleware",
    "transactions",
]
