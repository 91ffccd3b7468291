"""Views whose code queries after the response."""

import asyncio
import threading

from asgiref.sync import sync_to_async
from django.core.signals import request_finished
from django.db import transaction
from django.http import HttpResponse

from tests.leaks.leaky_site import control
from tests.leaks.leaky_site.views.base import KEPT, ok, query, view


@view
def response_close_queries(request):
    class QueriesInClose(HttpResponse):
        def close(self):
            super().close()
            query()

    return QueriesInClose("ok")


@view
def late_receiver_queries(request):
    # Connected after Django's own receiver, which closes connections, and so called after it.
    request_finished.connect(_query_late, dispatch_uid="late")
    query()
    return ok()


def _query_late(**kwargs):
    query()


@view
async def create_task(request):
    async def after():
        with control.work():
            await asyncio.sleep(0.1)
            await sync_to_async(query)()

    task = asyncio.create_task(after())
    KEPT.append(task)
    task.add_done_callback(KEPT.remove)
    return ok()


@view
def thread_on_commit(request):
    with transaction.atomic():
        query()
        transaction.on_commit(lambda: threading.Thread(target=control.later(query)).start())
    return ok()


@view
def wsgi_close_queries(request):
    query()
    return ok()


@view
def asgi_wrapper_queries(request):
    return ok()


@view
def lifespan_queries(request):
    return ok()
