"""Ways to leave a session behind: this room holds one view for each, named as in
``tests.leaks.mechanisms``.
"""

import asyncio
import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing.pool import ThreadPool

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.signals import request_finished
from django.db import ConnectionHandler, connection, connections, transaction
from django.http import FileResponse, HttpResponse, StreamingHttpResponse

from tests.leaks.leaky_site import control
from tests.leaks.leaky_site.models import Parameter

VIEWS = {}
KEPT = []
"""What some views keep for ever, as a cache, a metric or a debugger would."""

EXECUTOR = ThreadPoolExecutor(20)
CHUNK = b"x" * 65536
PACE = 0.005
"""Seconds between two parts of a stream, so that a client that leaves early leaves in the
middle.
"""


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
    """One such middleware makes Django run everything above and below it in sync mode, as under
    CVAT.
    """

    def middleware(request):
        return get_response(request)

    return middleware


# The ordinary request


@view
def nothing(request):
    return ok()


@view
def sync_query(request):
    query()
    return ok()


@view
async def async_query(request):
    await aquery()
    return ok()


@view
async def sync_middleware(request):
    await aquery()
    return ok()


@view
def two_aliases(request):
    query()
    query("second")
    return ok()


@view
def view_raises(request):
    query()
    raise ValueError("The view failed.")


@view
def atomic_requests(request):
    query()
    return ok()


@view
def file_response(request):
    query()
    return FileResponse(open(__file__, "rb"))


# The server's send raises, or the client leaves


@view
def x_accel_redirect(request):
    """Answer as django_sendfile's nginx backend does: no body, and the Content-Length of the file
    that nginx will send.
    """
    query()
    return HttpResponse(
        b"", headers={"X-Accel-Redirect": "/protected/file", "Content-Length": "100000"}
    )


@view
def content_length_too_small(request):
    query()
    return HttpResponse(b"a longer body", headers={"Content-Length": "2"})


@view
def bad_cookie(request):
    """Set a cookie that no server can encode."""
    query()
    response = ok()
    response.set_cookie("name", "value", path="/\u20ac")
    return response


@view
async def async_view_left(request):
    await aquery()
    await asyncio.sleep(0.3)
    await aquery()
    return ok()


@view
def file_response_left(request):
    query()
    return FileResponse(io.BytesIO(CHUNK * 40))


# Streams


@view
def stream_queries(request):
    def body():
        with control.work():
            query()
            yield CHUNK
            query()

    return StreamingHttpResponse(body())


@view
async def async_stream_queries(request):
    async def body():
        await aquery()
        yield CHUNK
        await aquery()

    return StreamingHttpResponse(body())


@view
def stream_raises(request):
    def body():
        with control.work():
            query()
            yield CHUNK
            query()
            raise ValueError("The stream failed.")

    return StreamingHttpResponse(body())


@view
async def async_stream_raises(request):
    async def body():
        await aquery()
        yield CHUNK
        await aquery()
        raise ValueError("The stream failed.")

    return StreamingHttpResponse(body())


@view
def stream_in_atomic_left(request):
    def body():
        with control.work(), transaction.atomic():
            query()
            for _ in range(40):
                time.sleep(PACE)
                yield CHUNK

    return StreamingHttpResponse(body())


@view
def stream_of_iterator_left(request):
    def body():
        with control.work():
            for _ in islice(Parameter.objects.iterator(chunk_size=10), 40):
                time.sleep(PACE)
                yield CHUNK

    return StreamingHttpResponse(body())


@view
async def async_stream_left(request):
    async def body():
        for _ in range(40):
            await aquery()
            yield CHUNK
            await asyncio.sleep(PACE)

    return StreamingHttpResponse(body())


@view
async def async_stream_of_iterator_left(request):
    async def body():
        async for _ in Parameter.objects.aiterator(chunk_size=10):
            yield CHUNK

    return StreamingHttpResponse(body())


# After the response


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


# Threads that end


@view
def thread(request):
    threading.Thread(target=control.later(query)).start()
    return ok()


@view
def timer(request):
    threading.Timer(0.05, control.later(query)).start()
    return ok()


@view
def two_aliases_in_thread(request):
    threading.Thread(target=control.later(lambda: (query(), query("second")))).start()
    return ok()


@view
def thread_pool(request):
    with ThreadPool(2) as pool:
        pool.map(lambda _: query(), range(2))
    return ok()


@view
def executor_per_request(request):
    with ThreadPoolExecutor(2) as executor:
        list(executor.map(lambda _: query(), range(2)))
    return ok()


@view
def thread_without_autocommit(request):
    threading.Thread(target=control.later(_query_without_autocommit)).start()
    return ok()


def _query_without_autocommit():
    if transaction.get_autocommit():
        transaction.set_autocommit(False)
    query()


# Threads that live on


@view
def global_executor(request):
    list(EXECUTOR.map(lambda _: query(), range(2)))
    return ok()


@view
def executor_without_autocommit(request):
    EXECUTOR.submit(_query_without_autocommit).result()
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


# Connections that something holds, or that Django doesn't know


@view
def wrapper_kept(request):
    in_thread(lambda: (query(), KEPT.append(connections["default"])))
    return ok()


@view
def driver_connection_kept(request):
    in_thread(lambda: (query(), KEPT.append(connection.connection)))
    return ok()


@view
def traceback_kept(request):
    def fail():
        wrapper = connections["default"]
        try:
            query()
            raise ValueError(wrapper.alias)
        except ValueError as error:
            KEPT.append(error)

    in_thread(fail)
    return ok()


@view
def iterator_kept(request):
    def read_one():
        rows = Parameter.objects.iterator(chunk_size=2)
        next(rows)
        KEPT.append(rows)

    in_thread(read_one)
    return ok()


@view
def copy_dropped(request):
    copy = connection.copy()
    with copy.cursor() as cursor:
        cursor.execute("SELECT 1")
    return ok()


@view
def own_handler(request):
    handler = ConnectionHandler(settings.DATABASES)
    with handler["default"].cursor() as cursor:
        cursor.execute("SELECT 1")
    return ok()


# Transactions and the state of a session


@view
def raw_begin(request):
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1")
    return ok()


@view
def atomic_never_left(request):
    transaction.atomic().__enter__()
    query()
    return ok()


@view
def advisory_lock(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [os.getpid()])
    return ok()


@view
def listen(request):
    with connection.cursor() as cursor:
        cursor.execute("LISTEN leaks")
    return ok()


# For the benchmarks


@view
def backend_pid(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return HttpResponse(str(cursor.fetchone()[0]))


@view
def large(request):
    query()
    return HttpResponse(CHUNK * 80)


@view
def large_file(request):
    query()
    return FileResponse(io.BytesIO(CHUNK * 80))
