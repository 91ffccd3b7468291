"""The table of the views, and the queries that they share."""

import threading

from django.db import connections, transaction
from django.http import HttpResponse

from tests.leaks.leaky_site import control
from tests.leaks.leaky_site.models import Parameter

VIEWS = {}
KEPT = []
"""References that some views keep, as a cache, a metric or a debugger does."""

CHUNK = b"x" * 65536
PACE = 0.005
"""Seconds between two parts of a stream, so that an early client leaves in the middle."""


def view(function):
    VIEWS[function.__name__] = function
    return function


def query(alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()


async def aquery():
    await Parameter.objects.afirst()


def in_thread(function):
    """Run *function* in a thread that ends before the response is made."""
    thread = threading.Thread(target=control.later(function))
    thread.start()
    thread.join()


def ok():
    return HttpResponse("ok")


def sync_only_middleware(get_response):
    """Make Django run the whole chain in sync mode, as CVAT's middleware does."""

    def middleware(request):
        return get_response(request)

    return middleware


def query_without_autocommit():
    if transaction.get_autocommit():
        transaction.set_autocommit(False)
    query()
