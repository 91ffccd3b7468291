"""The quick part of the leak matrix, on the Django that is installed.

Each cell starts one server. Python's garbage collector is off there: it frees some of the sessions
that Django alone leaves, at moments that can't be chosen.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import django
import pytest

from tests.leaks.harness import Cell, Result, measure
from tests.leaks.rings import expectation
from tests.leaks.servers import SERVERS

LEAKS_IN_DJANGO = [
    Cell("uvicorn", "x_accel_redirect", "0", "django"),
    Cell("uvicorn", "sync_query", "None", "django"),
    Cell("uvicorn", "error_page_404", "0", "django"),
    Cell("uvicorn", "run_in_executor", "0", "django"),
    Cell("uvicorn", "thread", "0", "django"),
    Cell("gunicorn-gthread", "raw_begin", "None", "django"),
]

CLOSED_BY_THE_APP = [
    Cell("uvicorn", "x_accel_redirect", "0", "app"),
    Cell("uvicorn", "async_stream_raises", "0", "app"),
    Cell("uvicorn", "traceback_kept", "0", "app"),
    Cell("uvicorn", "run_in_executor", "0", "app"),
    Cell("daphne", "sync_query", "None", "app"),
    Cell("hypercorn", "x_accel_redirect", "0", "app"),
    Cell("granian", "sync_query", "60", "app"),
    Cell("gunicorn-uvicorn", "bad_cookie", "0", "app"),
    Cell("gunicorn-gthread", "thread", "0", "app"),
    Cell("gunicorn-gthread", "executor_per_request", "0", "app"),
    Cell("gunicorn-gevent", "sync_query", "None", "app"),
    Cell("runserver", "sync_query", "None", "app"),
]

CLOSED_BY_THE_MIDDLEWARE = [
    Cell("uvicorn", "sync_query", "None", "middleware"),
    Cell("uvicorn", "two_aliases", "None", "middleware"),
    Cell("uvicorn", "error_page_404", "None", "middleware"),
    Cell("daphne", "error_page_500", "0", "middleware"),
    Cell("uvicorn", "async_error_page_500", "None", "middleware"),
    Cell("uvicorn", "drf_exception", "0", "middleware"),
    Cell("uvicorn", "to_thread", "0", "middleware"),
    Cell("uvicorn", "not_thread_sensitive", "0", "middleware"),
    Cell("uvicorn", "stream_of_iterator_left", "0", "middleware"),
    Cell("uvicorn", "async_stream_left", "None", "middleware"),
    Cell("uvicorn", "async_view_left", "None", "middleware"),
    Cell("uvicorn", "query_on_loop", "None", "middleware"),
    Cell("gunicorn-sync", "sync_query", "0", "middleware"),
    Cell("gunicorn-gthread", "raw_begin", "None", "middleware"),
    Cell("gunicorn-gthread", "late_receiver_queries", "0", "middleware"),
    Cell("gunicorn-gthread", "bad_cookie", "0", "middleware"),
    Cell("granian-wsgi", "sync_query", "None", "middleware"),
]


def _id(cell: Cell) -> str:
    return f"{cell.server}-{cell.mechanism}-{cell.setting}"


def _measure(cell: Cell) -> Result:
    server = SERVERS[cell.server]
    for module in (server.module, *server.needs):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed, so {cell.server} can't be measured")
    return measure(cell, os.environ["DATABASE_URL"], requests=12, concurrency=4, collector=False)


@pytest.mark.parametrize("cell", LEAKS_IN_DJANGO, ids=_id)
def test_django_alone_leaves_sessions(cell):
    result = _measure(cell)
    assert result.left.total > 0
    assert result.wrong_answers == 0


@pytest.mark.parametrize("cell", CLOSED_BY_THE_APP, ids=_id)
def test_the_app_alone_leaves_none(cell):
    assert_kept(cell, _measure(cell))


@pytest.mark.parametrize("cell", CLOSED_BY_THE_MIDDLEWARE, ids=_id)
def test_the_middleware_leaves_none(cell):
    assert_kept(cell, _measure(cell))


def assert_kept(cell: Cell, result: Result) -> None:
    series = "{}.{}".format(*django.VERSION)
    owed = expectation(cell.column, cell.server, cell.mechanism, cell.setting, series)
    assert owed.at_most is not None
    assert result.left.total <= owed.at_most, str(result)
    assert result.left.in_transaction == 0, str(result)
    assert result.wrong_answers == 0, str(result)
