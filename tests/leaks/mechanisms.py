"""The ways to leak: their names, and the servers and settings on which each is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.leaks.servers import ASGI, WSGI

UVICORN = ("uvicorn", "cvat")
GTHREAD = ("gunicorn-gthread",)
BOTH = (*UVICORN, *GTHREAD)
EVERY = (*ASGI, *WSGI)
# The servers besides gthread that run each WSGI request in a thread, or greenlet, of its own.
THREAD_PER_REQUEST = ("gunicorn-gevent", "runserver")

AT_REST = ("0",)
PERSISTENT = ("0", "60", "None")
FOR_EVER = ("0", "None")
POOLED = ("0", "pool")


@dataclass(frozen=True)
class Mechanism:
    """One way to leak: the view of that name in ``leaky_site.views``, and how it is driven."""

    name: str
    title: str
    servers: tuple[str, ...]
    settings: tuple[str, ...] = AT_REST
    leaves_early: bool = False
    answers: frozenset[int] = frozenset({200})
    """The statuses that are no fault; 0 is a connection that was closed without an answer."""
    environ: Mapping[str, str] = field(default_factory=dict)


_FAILS = frozenset({0, 500})
_FAILED = frozenset({500})
_NOT_FOUND = frozenset({404})

_TABLE = [
    # The ordinary request
    Mechanism("sync_query", "sync view, one query", EVERY, (*PERSISTENT, "pool")),
    Mechanism("async_query", "async view, one query", ASGI, FOR_EVER),
    Mechanism("two_aliases", "two aliases in a view", BOTH, FOR_EVER),
    Mechanism("view_raises", "view that raises after a query", BOTH, FOR_EVER, answers=_FAILED),
    Mechanism(
        "atomic_requests", "ATOMIC_REQUESTS", BOTH, FOR_EVER, environ={"LEAKS_ATOMIC_REQUESTS": "1"}
    ),
    Mechanism("file_response", "FileResponse", BOTH, FOR_EVER),
    Mechanism(
        "sync_middleware",
        "sync-only middleware below ours, async view",
        UVICORN,
        FOR_EVER,
        environ={"LEAKS_SYNC_MIDDLEWARE": "1"},
    ),
    # Error pages, which Django before 6.2 renders in an executor of its own under ASGI
    Mechanism(
        "error_page_404", "handler404 that queries", (*BOTH, "daphne"), FOR_EVER, answers=_NOT_FOUND
    ),
    Mechanism(
        "error_page_500", "handler500 that queries", (*BOTH, "daphne"), FOR_EVER, answers=_FAILED
    ),
    Mechanism(
        "async_error_page_500",
        "handler500 that queries, async view",
        UVICORN,
        FOR_EVER,
        answers=_FAILED,
    ),
    Mechanism(
        "drf_exception",
        "Django REST framework's exception handler queries",
        BOTH,
        answers=_NOT_FOUND,
    ),
    # The server's send raises, or the client leaves
    Mechanism(
        "x_accel_redirect",
        "X-Accel-Redirect with the file's Content-Length and no body, so send raises",
        ASGI,
        (*PERSISTENT, "pool"),
    ),
    Mechanism(
        "content_length_too_small", "Content-Length shorter than the body, so send raises", ASGI
    ),
    Mechanism(
        "bad_cookie",
        "a Set-Cookie that can't be encoded, so send raises",
        (*ASGI, *GTHREAD),
        POOLED,
        answers=_FAILS,
    ),
    Mechanism("async_view_left", "async view, client leaves", UVICORN, FOR_EVER, leaves_early=True),
    Mechanism(
        "file_response_left", "FileResponse, client leaves", BOTH, FOR_EVER, leaves_early=True
    ),
    # Streams
    Mechanism("stream_queries", "sync streaming body that queries", BOTH, FOR_EVER),
    Mechanism("async_stream_queries", "async streaming body that queries", UVICORN, FOR_EVER),
    Mechanism("stream_raises", "sync streaming body that raises half-way", BOTH),
    Mechanism("async_stream_raises", "async streaming body that raises half-way", UVICORN, POOLED),
    Mechanism(
        "stream_in_atomic_left",
        "streaming body inside atomic, client leaves",
        BOTH,
        leaves_early=True,
    ),
    Mechanism(
        "stream_of_iterator_left",
        "streaming body with iterator(), client leaves",
        BOTH,
        POOLED,
        leaves_early=True,
    ),
    Mechanism(
        "async_stream_left",
        "async streaming body, client leaves",
        UVICORN,
        FOR_EVER,
        leaves_early=True,
    ),
    Mechanism(
        "async_stream_of_iterator_left",
        "async streaming body with aiterator(), client leaves",
        UVICORN,
        leaves_early=True,
    ),
    # After the response
    Mechanism("response_close_queries", "a response whose close() queries", BOTH, POOLED),
    Mechanism("late_receiver_queries", "a request_finished receiver connected late queries", BOTH),
    Mechanism("create_task", "asyncio.create_task that queries after the response", UVICORN),
    Mechanism("thread_on_commit", "thread started by on_commit", BOTH),
    Mechanism("wsgi_close_queries", "WSGI wrapper's close() queries", GTHREAD),
    Mechanism("asgi_wrapper_queries", "ASGI wrapper outside Django queries", UVICORN),
    Mechanism(
        "lifespan_queries",
        "lifespan handler queries",
        UVICORN,
        environ={"LEAKS_LIFESPAN_QUERIES": "1"},
    ),
    # Threads that end
    Mechanism("thread", "threading.Thread in a view", (*BOTH, *THREAD_PER_REQUEST), POOLED),
    Mechanism("timer", "threading.Timer in a view", BOTH),
    Mechanism("two_aliases_in_thread", "two aliases in a thread", BOTH),
    Mechanism("thread_pool", "multiprocessing.pool.ThreadPool in a view", BOTH),
    Mechanism(
        "executor_per_request",
        "ThreadPoolExecutor per request",
        (*BOTH, *THREAD_PER_REQUEST),
        POOLED,
    ),
    Mechanism("thread_without_autocommit", "set_autocommit(False) left in a thread", BOTH),
    # Threads that live on
    Mechanism("global_executor", "global ThreadPoolExecutor", BOTH),
    Mechanism(
        "executor_without_autocommit", "set_autocommit(False) left in an executor's thread", BOTH
    ),
    Mechanism("executor_never_shut_down", "ThreadPoolExecutor never shut down", BOTH),
    Mechanism("run_in_executor", "loop.run_in_executor", UVICORN),
    Mechanism("to_thread", "asyncio.to_thread", UVICORN),
    Mechanism("not_thread_sensitive", "sync_to_async(thread_sensitive=False)", UVICORN),
    Mechanism(
        "query_on_loop",
        "ORM on the event loop's thread (DJANGO_ALLOW_ASYNC_UNSAFE)",
        UVICORN,
        FOR_EVER,
        environ={"DJANGO_ALLOW_ASYNC_UNSAFE": "1"},
    ),
    # Connections that something holds, or that Django doesn't know
    Mechanism("wrapper_kept", "a global keeps the wrapper of a dead thread", BOTH),
    Mechanism(
        "driver_connection_kept", "a global keeps the driver's connection of a dead thread", BOTH
    ),
    Mechanism("traceback_kept", "a kept traceback holds the wrapper", BOTH),
    Mechanism("iterator_kept", "half-read iterator() kept, its thread dead", BOTH),
    Mechanism("copy_dropped", "connection.copy() used and dropped", BOTH, POOLED),
    Mechanism("own_handler", "an own ConnectionHandler", BOTH),
    # Transactions and the state of a session
    Mechanism("raw_begin", "raw BEGIN left open", BOTH, FOR_EVER),
    Mechanism("atomic_never_left", "atomic().__enter__() without exit", BOTH, FOR_EVER),
    Mechanism("advisory_lock", "session advisory lock taken in a view", BOTH, FOR_EVER),
    Mechanism("listen", "LISTEN in a view", BOTH, FOR_EVER),
]

MECHANISMS = {each.name: each for each in _TABLE}
