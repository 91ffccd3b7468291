"""Every exit of a request, through Django's WSGI and ASGI handlers, with the app and the middleware
installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import pickle
import sys
import tempfile
import threading
import weakref

import django
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.files import File
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections, transaction
from django.http import FileResponse, HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.utils.decorators import sync_only_middleware

from conn_guard.connections import ownership, scopes
from conn_guard.middleware import ConnectionGuardMiddleware, _is_ready
from tests.django import urls

# Django warns of every synchronous body that it serves under ASGI, and of every asynchronous one
# under WSGI.
pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")

MIDDLEWARE = "conn_guard.middleware.ConnectionGuardMiddleware"
SYNC = f"{__name__}.sync_only"

leaves_contexts_in_cycles = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="on Python 3.10 a call of sync_to_async leaves its context to the garbage collector",
)


@sync_only_middleware
def sync_only(get_response):
    return get_response


@pytest.fixture(autouse=True)
def _installed(settings):
    settings.ROOT_URLCONF = "tests.django.urls"
    settings.MIDDLEWARE = [MIDDLEWARE]
    settings.ALLOWED_HOSTS = ["*"]


def wsgi(path, *, read=None):
    """Serve one request as a WSGI server does: read the body, or *read* parts of it, then close."""
    environ = RequestFactory().get(path).environ
    body = WSGIHandler()(environ, lambda *args: None)
    try:
        return b"".join(body) if read is None else b"".join(next(iter(body)) for _ in range(read))
    finally:
        body.close()


async def asgi(path, *, send=None, receive=None):
    """Serve one request as an ASGI server does; *send* may raise, as uvicorn's does when the body
    is shorter than said.
    """
    path, _, query = path.partition("?")
    sent = []
    messages = [{"type": "http.request"}]

    async def from_client():
        if messages:
            return messages.pop()
        return await asyncio.sleep(30)

    async def to_client(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [],
    }
    await ASGIHandler()(scope, receive or from_client, send or to_client)
    return b"".join(message.get("body", b"") for message in sent)


# WSGI


def test_wsgi_closes_at_the_end_and_before_the_body_is_sent(url_alias, observer, worker):
    def serve():
        body = WSGIHandler()(RequestFactory().get("/plain/").environ, lambda *args: None)
        ready = observer.settled(url_alias, 0)
        assert b"".join(body) == b"plain"
        body.close()
        return ready

    assert worker(serve)


def test_wsgi_keeps_persistent_connections(make_alias, observer, worker, monkeypatch):
    alias = make_alias(CONN_MAX_AGE=60)
    monkeypatch.setattr(urls, "ALIASES", [alias])
    first = worker(lambda: wsgi("/plain/") and connections[alias].connection)
    assert worker(lambda: wsgi("/plain/") and connections[alias].connection) is first
    assert observer.states(alias) == ["idle"]
    worker(lambda: connections[alias].close())


@pytest.mark.parametrize(
    "path", ["copies", "closing", "closing_instance", "late_receiver", "fails", "file", "stream"]
)
def test_wsgi_leaves_nothing_on_a_thread_that_lives_on(url_alias, observer, worker, path):
    with contextlib.suppress(ValueError):
        worker(wsgi, f"/{path}/")
    assert observer.settled(url_alias, 0)


def test_wsgi_a_stream_that_fails_leaves_nothing(url_alias, observer, worker):
    with pytest.raises(ValueError, match="on purpose"):
        worker(wsgi, "/stream/?fail=1")
    assert observer.settled(url_alias, 0)


def test_wsgi_a_stream_that_is_abandoned_leaves_nothing(url_alias, observer, worker):
    assert worker(lambda: wsgi("/stream/", read=1)) == b"0"
    assert observer.settled(url_alias, 0)


def test_wsgi_a_stream_keeps_its_connection_until_it_is_exhausted(url_alias, observer, worker):
    def serve():
        response = WSGIHandler()(RequestFactory().get("/stream/").environ, lambda *args: None)
        parts = iter(response)
        next(parts)
        during = observer.states(url_alias)
        list(parts)
        after = observer.settled(url_alias, 0)
        response.close()
        return during, after

    assert worker(serve) == (["idle"], True)


def test_wsgi_serves_an_async_stream(url_alias, observer, worker):
    assert worker(wsgi, "/astream/") == b"012"
    assert observer.settled(url_alias, 0)


def test_wsgi_a_file_is_handed_to_the_servers_file_wrapper(url_alias, observer, worker):
    def serve():
        environ = {
            **RequestFactory().get("/file/").environ,
            "wsgi.file_wrapper": lambda file, size: file,
        }
        file = WSGIHandler()(environ, lambda *args: None)
        ready = observer.settled(url_alias, 0)
        assert isinstance(file, io.BytesIO)
        file.close()
        return ready

    assert worker(serve)


@pytest.mark.parametrize("max_age", [0, None])
@pytest.mark.parametrize("view", ["raw_begin", "autocommit_off", "atomic_entered"])
def test_a_transaction_left_open_is_rolled_back_logged_once_and_heals(
    make_alias, observer, worker, monkeypatch, caplog, view, max_age
):
    alias = make_alias(CONN_MAX_AGE=max_age)
    monkeypatch.setattr(urls, "ALIASES", [alias])
    worker(wsgi, f"/{view}/")
    assert observer.settled(alias, 0)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "conn_guard.middleware",
            "WARNING",
            f"tests.django.urls.{view} (the-{view}) left a transaction open on {alias!r}; "
            "it is rolled back with its connection.",
        )
    ]
    assert worker(wsgi, "/plain/") == b"plain"
    worker(lambda: connections[alias].close())


def test_a_transaction_left_on_a_connection_that_was_open_before_is_rolled_back(
    url_alias, observer, worker, caplog
):
    worker(urls.query)
    worker(wsgi, "/raw_begin/")
    assert observer.settled(url_alias, 0)
    assert len(caplog.records) == 1


def test_a_transaction_left_in_sqlite_is_seen(make_alias, worker, monkeypatch, caplog, tmp_path):
    alias = make_alias(ENGINE="django.db.backends.sqlite3", NAME=tmp_path / "db", OPTIONS={})
    monkeypatch.setattr(urls, "ALIASES", [alias])
    worker(wsgi, "/raw_begin/")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_two_aliases_are_both_closed(make_alias, observer, worker, monkeypatch):
    aliases = [make_alias(), make_alias()]
    monkeypatch.setattr(urls, "ALIASES", aliases)
    worker(wsgi, "/plain/")
    assert all(observer.settled(alias, 0) for alias in aliases)


def test_a_connection_that_was_open_before_the_request_is_left_to_django(
    make_alias, observer, worker, monkeypatch
):
    alias = make_alias(CONN_MAX_AGE=None)
    monkeypatch.setattr(urls, "ALIASES", [alias])
    worker(urls.query)
    worker(wsgi, "/plain/")
    assert observer.states(alias) == ["idle"]
    worker(lambda: connections[alias].close())


def test_always_closes_it_as_well(make_alias, observer, worker, monkeypatch, settings):
    settings.CONN_GUARD = {"CLOSE": "always"}
    alias = make_alias(CONN_MAX_AGE=None)
    monkeypatch.setattr(urls, "ALIASES", [alias])
    worker(urls.query)
    worker(wsgi, "/plain/")
    assert observer.settled(alias, 0)


def test_always_does_not_close_inside_an_atomic_block(url_alias, observer, worker, settings):
    settings.CONN_GUARD = {"CLOSE": "always"}

    def serve():
        with transaction.atomic(using=url_alias):
            urls.query()
            Client().get("/plain/")
            urls.query()

    worker(serve)
    assert observer.states(url_alias) == ["idle"]
    worker(lambda: connections[url_alias].close())


@pytest.mark.parametrize("handler", ["wsgi", "asgi"])
def test_never_leaves_it_to_django(make_alias, observer, worker, monkeypatch, settings, handler):
    settings.CONN_GUARD = {"CLOSE": "never", "CLOSE_WITH_OWNER": False}
    alias = make_alias(CONN_MAX_AGE=None)
    monkeypatch.setattr(urls, "ALIASES", [alias])
    wrappers = []
    original = urls.query
    monkeypatch.setattr(urls, "query", lambda: (original(), wrappers.append(connections[alias])))
    worker(lambda: wsgi("/raw_begin/") if handler == "wsgi" else asyncio.run(asgi("/plain/")))
    assert observer.states(alias) == ["idle in transaction" if handler == "wsgi" else "idle"]
    for wrapper in [*wrappers, worker(lambda: connections[alias])]:
        wrapper.inc_thread_sharing()
        wrapper.close()


# ASGI


@pytest.fixture(params=["async", "sync"])
def chain(request, settings):
    """Run the middleware in its async mode, and in its sync mode as a sync-only middleware below it
    makes it run.
    """
    if request.param == "sync":
        settings.MIDDLEWARE = [MIDDLEWARE, SYNC]
    return request.param


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("max_age", [0, 60, None])
@pytest.mark.parametrize("view", ["plain", "aplain", "file", "astream", "closing", "late_receiver"])
def test_asgi_leaves_nothing(make_alias, observer, monkeypatch, view, max_age):
    alias = make_alias(CONN_MAX_AGE=max_age)
    monkeypatch.setattr(urls, "ALIASES", [alias])
    assert asyncio.run(asgi(f"/{view}/"))
    assert observer.settled(alias, 0)


@pytest.mark.usefixtures("chain")
def test_asgi_serves_a_sync_stream(url_alias, observer):
    assert asyncio.run(asgi("/stream/")) == b"012"
    assert observer.settled(url_alias, 0)


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("view", ["large", "file", "alarge"])
def test_asgi_gives_the_connection_back_while_a_large_body_is_sent(url_alias, observer, view):
    counts = []

    async def send(message):
        counts.append(await asyncio.to_thread(observer.settled, url_alias, 0))

    asyncio.run(asgi(f"/{view}/", send=send))
    assert counts
    assert all(counts)


@pytest.mark.usefixtures("chain")
def test_asgi_gives_the_connection_back_when_a_stream_is_exhausted(url_alias, observer):
    counts = []

    async def send(message):
        if message["type"] == "http.response.body":
            counts.append(
                await asyncio.to_thread(
                    observer.settled, url_alias, 1 if message.get("body") else 0
                )
            )

    asyncio.run(asgi("/astream/", send=send))
    assert counts == [True] * 4


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("view", ["plain", "astream", "aplain"])
def test_asgi_a_send_that_raises_leaves_nothing_and_is_told_once(url_alias, observer, view, caplog):
    caplog.set_level(logging.INFO, "conn_guard")

    async def send(message):
        if message["type"] == "http.response.body":
            raise RuntimeError("Response content shorter than Content-Length")

    with pytest.raises(RuntimeError, match="shorter than Content-Length"):
        asyncio.run(asgi(f"/{view}/", send=send))
    assert observer.settled(url_alias, 0)
    assert wait_for(lambda: caplog.records)
    [record] = caplog.records
    assert (record.name, record.levelname) == ("conn_guard.middleware", "INFO")
    assert record.getMessage().startswith(
        f"The response of tests.django.urls.{view} (the-{view}) was never closed: "
    )


@pytest.mark.usefixtures("chain")
def test_asgi_a_stream_that_fails_leaves_nothing(url_alias, observer):
    with pytest.raises(ValueError, match="on purpose"):
        asyncio.run(asgi("/astream/?fail=1"))
    assert observer.settled(url_alias, 0)


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("view", ["waits", "astream"])
def test_asgi_a_cancelled_request_leaves_nothing(url_alias, observer, view):
    async def send(message):
        if message.get("body"):
            await asyncio.sleep(30)

    async def main():
        task = asyncio.create_task(asgi(f"/{view}/", send=send))
        assert await asyncio.to_thread(observer.settled, url_alias, 1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert observer.settled(url_alias, 0)


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("view", ["waits", "astream"])
def test_asgi_a_client_that_leaves_leaves_nothing(url_alias, observer, view):
    """Django notices a client that leaves from 5.0 on; before, the view runs to its end."""
    first = True

    async def receive():
        nonlocal first
        if first:
            first = False
            return {"type": "http.request"}
        assert await asyncio.to_thread(observer.settled, url_alias, 1)
        return {"type": "http.disconnect"}

    async def main():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asgi(f"/{view}/", receive=receive), 5)

    asyncio.run(main())
    assert observer.settled(url_alias, 0)


@leaves_contexts_in_cycles
def test_asgi_what_a_task_opens_after_the_response_ends_with_the_task(
    url_alias, observer, monkeypatch
):
    assert after_the_response(url_alias, observer, monkeypatch, urls.query) == ({"idle"}, True)


@leaves_contexts_in_cycles
def test_asgi_a_transaction_that_a_task_leaves_after_the_response_ends_with_the_thread(
    url_alias, observer, monkeypatch
):
    def begin():
        transaction.atomic(using=url_alias).__enter__()
        urls.query()

    assert after_the_response(url_alias, observer, monkeypatch, begin) == (
        {"idle in transaction"},
        False,
    )
    urls.LATER.clear()
    assert observer.settled(url_alias, 0)


def test_asgi_what_an_executors_thread_opens_after_the_response_ends_with_its_call(
    url_alias, observer, monkeypatch
):
    query = sync_to_async(urls.query, thread_sensitive=False)

    async def main():
        monkeypatch.setattr(urls, "AFTER_THE_RESPONSE", [query])
        monkeypatch.setattr(urls, "LATER", [])
        await asgi("/starts_a_task/")
        await urls.LATER.pop(0)
        return await asyncio.to_thread(observer.settled, url_alias, 0)

    assert asyncio.run(main())


def test_asgi_a_task_that_reopens_after_the_response_gathers_no_owners(
    url_alias, observer, monkeypatch
):
    owners = []

    def reopen():
        urls.query()
        connections[url_alias].close()
        urls.query()
        owners.append(ownership._context_owners.get())

    after_the_response(url_alias, observer, monkeypatch, reopen)
    assert [len(each) for each in owners] == [1, 1]


def test_asgi_a_task_that_ends_within_the_request_leaves_it_its_session(url_alias, observer):
    assert asyncio.run(asgi("/asks_two_tasks/")) == b"the same"
    assert observer.settled(url_alias, 0)


def after_the_response(alias, observer, monkeypatch, query):
    """Query twice in a task that outlives its request; return the states of its sessions, and
    whether they end with it.
    """
    query = sync_to_async(query)

    async def main():
        over, asked, ends = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def task():
            await over.wait()
            await query()
            await query()
            asked.set()
            await ends.wait()

        monkeypatch.setattr(urls, "AFTER_THE_RESPONSE", [task])
        monkeypatch.setattr(urls, "LATER", [])
        await asgi("/starts_a_task/")
        over.set()
        await asyncio.wait_for(asked.wait(), 10)
        states = set(await asyncio.to_thread(observer.states, alias))
        ends.set()
        await urls.LATER.pop(0)
        await asyncio.sleep(0.2)
        return states, not await asyncio.to_thread(observer.states, alias)

    return asyncio.run(main())


@pytest.mark.parametrize("max_age", [0, None])
def test_asgi_closes_what_an_async_view_opened_on_the_loops_thread(
    make_alias, observer, monkeypatch, max_age
):
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    alias = make_alias(CONN_MAX_AGE=max_age)
    monkeypatch.setattr(urls, "ALIASES", [alias])

    async def main():
        assert await asgi("/unsafe/") == b"unsafe"
        return await asyncio.to_thread(observer.settled, alias, 0)

    assert asyncio.run(main())


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("max_age", [0, None])
@pytest.mark.parametrize(
    "path", ["absent", "fails", "afails", "to_thread", "not_sensitive", "run_in_executor"]
)
def test_asgi_what_an_executors_thread_opens_leaves_nothing(
    make_alias, observer, monkeypatch, path, max_age
):
    if path == "run_in_executor" and max_age is None:
        pytest.skip("run_in_executor passes no context on, and the settings ask to keep it")
    alias = make_alias(CONN_MAX_AGE=max_age)
    monkeypatch.setattr(urls, "ALIASES", [alias])

    async def main():
        for _ in range(5):
            await asgi(f"/{path}/")
        # The loop's executor is still alive here.
        return await asyncio.to_thread(observer.settled, alias, 0)

    assert asyncio.run(main())


def test_asgi_outside_of_requests_an_executors_call_keeps_its_transaction(url_alias, observer):
    def begin():
        transaction.set_autocommit(False, using=url_alias)
        urls.query()

    async def main():
        await asyncio.to_thread(urls.query)
        assert await asyncio.to_thread(observer.settled, url_alias, 0)
        await asyncio.to_thread(begin)
        return await asyncio.to_thread(observer.states, url_alias)

    assert asyncio.run(main()) == ["idle in transaction"]


@pytest.mark.parametrize(
    ("kind", "size"), [("ready", 10), ("ready", 100_000), ("file", 100_000), ("stream", 10)]
)
def test_asgi_no_answer_waits_for_work_that_the_view_left_behind(
    url_alias, observer, monkeypatch, kind, size
):
    at_work = threading.Event()
    monkeypatch.setattr(urls, "AT_WORK", [at_work])
    monkeypatch.setattr(urls, "LATER", [])
    received = []

    async def send(message):
        received.append(message.get("body", b""))
        # Django itself reads a file on the thread that is at work.
        is_last = message["type"] == "http.response.body" and not message.get("more_body")
        if is_last or kind == "file":
            at_work.set()

    async def main():
        await asgi(f"/leaves_work/?kind={kind}&size={size}", send=send)
        return await urls.LATER[0]

    assert asyncio.run(main()), "the answer came after the work"
    assert len(b"".join(received)) == size
    assert observer.settled(url_alias, 0)


@pytest.mark.parametrize("max_age", [0, None])
def test_asgi_without_owners_the_request_ends_its_connections_itself(
    make_alias, observer, settings, monkeypatch, max_age
):
    settings.CONN_GUARD = {"CLOSE_WITH_OWNER": False}
    alias = make_alias(CONN_MAX_AGE=max_age)
    monkeypatch.setattr(urls, "ALIASES", [alias])

    async def send(message):
        raise RuntimeError("the client left")

    with pytest.raises(RuntimeError, match="the client left"):
        asyncio.run(asgi("/aplain/", send=send))
    assert observer.settled(alias, 0)


# Responses and settings of every kind


@pytest.mark.usefixtures("observer")
def test_a_view_may_return_one_response_again_and_again(rf):
    response = HttpResponse(b"ok")
    middleware = ConnectionGuardMiddleware(lambda request: response)
    for _ in range(1200):
        assert middleware(rf.get("/")).content == b"ok"
        response.close()


def test_a_response_that_two_requests_share_ends_both(make_alias, observer, rf):
    aliases = [make_alias(CONN_MAX_AGE=None), make_alias(CONN_MAX_AGE=None)]
    response = HttpResponse(b"ok")
    answered, closed = threading.Barrier(2, timeout=20), []

    def get_response(request):
        answered.wait()
        return response

    middleware = ConnectionGuardMiddleware(get_response)

    def serve(alias):
        middleware(rf.get("/"))
        answered.wait()
        # As a receiver of request_finished may: after the view and before the last end.
        with connections[alias].cursor() as cursor:
            cursor.execute("BEGIN")
        response.close()
        closed.append(scopes.current_scope())
        answered.wait()

    threads = [threading.Thread(target=serve, args=[alias]) for alias in aliases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert closed == [None, None]


@pytest.mark.parametrize("handler", ["wsgi", "asgi"])
def test_a_file_that_reads_from_the_database_keeps_its_connection(
    url_alias, observer, worker, handler
):
    read = wsgi if handler == "wsgi" else lambda path: asyncio.run(asgi(path))
    assert worker(read, "/file_of_rows/") == b"partpartpart"
    assert observer.settled(url_alias, 0)


@pytest.mark.parametrize("make", ["open", "named", "spooled", "django", "memory"])
def test_a_file_of_the_operating_system_needs_no_connection(make, tmp_path):
    (tmp_path / "file").write_bytes(b"bytes")
    made = {
        "open": lambda: (tmp_path / "file").open("rb"),
        "named": tempfile.NamedTemporaryFile,
        "spooled": tempfile.SpooledTemporaryFile,
        "django": lambda: File((tmp_path / "file").open("rb")),
        "memory": lambda: io.BytesIO(b"bytes"),
    }[make]()
    with contextlib.closing(FileResponse(made)) as response:
        assert _is_ready(response)
    assert not _is_ready(FileResponse(iter([b"part"])))


@pytest.mark.parametrize("max_age", [0, 600])
def test_without_autocommit_requests_that_only_read_are_no_reason_to_warn(
    make_alias, observer, worker, monkeypatch, caplog, max_age
):
    alias = make_alias(CONN_MAX_AGE=max_age, AUTOCOMMIT=False)
    monkeypatch.setattr(urls, "ALIASES", [alias])
    sessions = {
        worker(lambda: wsgi("/plain/") and id(connections[alias].connection)) for _ in range(4)
    }
    assert len(sessions) == 1
    assert caplog.messages == []
    assert observer.states(alias) == (["idle"] if max_age else [])
    worker(lambda: connections[alias].close())


def test_without_autocommit_a_request_that_wrote_and_did_not_commit_is_told(
    make_alias, observer, worker, monkeypatch, caplog
):
    alias = make_alias(CONN_MAX_AGE=600, AUTOCOMMIT=False)

    def write():
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE never_committed (id int)")

    monkeypatch.setattr(urls, "query", write)
    worker(wsgi, "/plain/")
    assert observer.settled(alias, 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_request_within_a_request_leaves_the_outer_one_its_view(url_alias, worker):
    view = b"tests.django.urls.another_request (the-another_request)"
    assert worker(wsgi, "/another_request/") == view


def test_what_is_opened_may_be_listed_while_another_thread_opens_more():
    scope = scopes.RequestScope(view=str, keep_persistent=False)
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    class Wrapper:
        connection = None

    kept = [Wrapper() for _ in range(2000)]
    adding = threading.Thread(target=lambda: [scope.add(each) for each in kept])
    try:
        adding.start()
        while adding.is_alive():
            scope.is_open_elsewhere()
    finally:
        sys.setswitchinterval(switch_interval)
        adding.join()
        scope.finish()
    assert len(scope.opened) == len(kept)


# Around the request


def test_the_test_client_keeps_a_connection_that_the_test_opened(url_alias, observer):
    with connections[url_alias].cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE state AS SELECT generate_series(1, 3)")
        cursor.execute("TABLE state")
        assert cursor.fetchone() == (1,)
        assert Client().get("/plain/").content == b"plain"
        assert asyncio.run(AsyncClient().get("/plain/")).content == b"plain"
        assert cursor.fetchone() == (2,)
        cursor.execute("TABLE state")
    assert observer.states(url_alias) == ["idle"]


def test_the_test_client_inside_an_atomic_block_works(url_alias, caplog):
    with transaction.atomic(using=url_alias):
        urls.query()
        wrapper = connections[url_alias]
        for view in ("plain", "stream", "file"):
            response = Client().get(f"/{view}/")
            assert b"".join(response)
        assert asyncio.run(AsyncClient().get("/aplain/")).content == b"aplain"
        urls.query()
        assert connections[url_alias] is wrapper
    assert caplog.records == []


def test_atomic_requests_work(make_alias, observer, worker, monkeypatch):
    alias = make_alias(ATOMIC_REQUESTS=True)
    monkeypatch.setattr(urls, "ALIASES", [alias])
    assert worker(wsgi, "/plain/") == b"plain"
    assert observer.settled(alias, 0)


def test_wrong_settings_stop_the_construction_in_the_words_of_the_checks(settings):
    settings.CONN_GUARD = {"CLOSE": "sometimes"}
    with pytest.raises(ImproperlyConfigured, match=r"^CONN_GUARD\['CLOSE'\] is 'sometimes', not "):
        ConnectionGuardMiddleware(lambda request: HttpResponse())


@pytest.mark.usefixtures("observer")
def test_a_response_can_still_be_pickled_by_a_cache_above(rf):
    response = ConnectionGuardMiddleware(lambda request: HttpResponse(b"body"))(rf.get("/"))
    restored = pickle.loads(pickle.dumps(response))
    assert restored.content == b"body"
    restored.close()
    assert restored.closed
    response.close()


@pytest.mark.usefixtures("observer")
@pytest.mark.skipif(django.VERSION < (5,), reason="Django 4.2's own responses are cycles")
def test_a_response_needs_no_garbage_collector(rf):
    gc.disable()
    try:
        response = ConnectionGuardMiddleware(lambda request: HttpResponse(b"body"))(rf.get("/"))
        response.close()
        gone = weakref.ref(response)
        del response
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("view", ["plain", "nothing"])
def test_a_thread_that_lives_on_does_not_keep_its_last_request(url_alias, worker, view):
    seen = []
    middleware = ConnectionGuardMiddleware(
        lambda request: (seen.append(weakref.ref(request)), getattr(urls, view)(request))[1]
    )
    worker(lambda: middleware(RequestFactory().get("/")).close())
    gc.collect()  # Django 4.2's own responses are cycles.
    assert seen[0]() is None


def wait_for(condition):
    async def main():
        for _ in range(500):
            if condition():
                return True
            await asyncio.sleep(0.01)
        return False

    return asyncio.run(main())
