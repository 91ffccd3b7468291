"""Views that query in threads that outlive the request."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from asgiref.sync import sync_to_async

from tests.leaks.leaky_site.views.base import KEPT, ok, query, query_without_autocommit, view

EXECUTOR = ThreadPoolExecutor(20)


@view
def global_executor(request):
    list(EXECUTOR.map(lambda _: query(), range(2)))
    return ok()


@view
def executor_without_autocommit(request):
    EXECUTOR.submit(query_without_autocommit).result()
    return ok()


@view
def executor_never_shut_down(request):
    executor = ThreadPoolExecutor(1)
    KEPT.append(executor)
    executor.submit(query).result()
    return ok()


@view
async def run_in_executor(request):
    await asyncio.get_running_loop().run_in_executor(None, query)
    return ok()


@view
async def to_thread(request):
    await asyncio.to_thread(query)
    return ok()


@view
async def not_thread_sensitive(request):
    await sync_to_async(query, thread_sensitive=False)()
    return ok()


@view
async def query_on_loop(request):
    query()
    return ok()
