"""The middleware with special responses and settings, and under Django's test clients."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import io
import pickle
import sys
import tempfile
import threading
import weakref

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.files import File
from django.core.signals import request_finished
from django.db import connections, transaction
from django.http import FileResponse, HttpResponse
from django.test import AsyncClient, Client, RequestFactory

from conn_guard.connections import scopes
from conn_guard.middleware import ConnectionGuardMiddleware, _streams_a_file
from tests.django import urls
from tests.support.handlers import asgi, wsgi
from tests.support.polling import until

pytestmark = [
    pytest.mark.usefixtures("middleware_installed"),
    # Django warns of a synchronous body under ASGI, and of an asynchronous one under WSGI.
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]


# Responses and settings


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
        # A receiver of request_finished may query here, after the view and before the scope ends.
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
        assert _streams_a_file(response)
    assert not _streams_a_file(FileResponse(iter([b"part"])))


@pytest.mark.parametrize("max_age", [0, 600])
def test_without_autocommit_a_request_that_only_reads_logs_no_warning(
    make_alias, observer, worker, monkeypatch, caplog, max_age
):
    alias = make_alias(CONN_MAX_AGE=max_age, AUTOCOMMIT=False)
    monkeypatch.setattr(urls, "ALIASES", [alias])
    sessions = {
        worker(lambda: wsgi("/plain/") and id(connections[alias].connection)) for _ in range(4)
    }
    assert len(sessions) == 1
    assert caplog.messages == []
    until(lambda: observer.states(alias) == (["idle"] if max_age else []))
    worker(lambda: connections[alias].close())


def test_without_autocommit_a_request_that_wrote_and_did_not_commit_is_logged(
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


def test_a_connection_that_was_taken_out_of_djangos_handler_is_left_alone(
    make_alias, observer, worker
):
    alias = make_alias(CONN_MAX_AGE=None)

    def serve(work):
        scope = scopes.RequestScope(view=str, keep_persistent=True)
        scope.look()
        work()
        scope.finish()

    def requests():
        serve(lambda: connections[alias].ensure_connection())
        own = connections[alias]
        del connections[alias]
        serve(lambda: own.cursor().execute("BEGIN"))
        states = observer.states(alias)
        own.close()
        return states

    assert worker(requests) == ["idle in transaction"]


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
@pytest.mark.parametrize("dropped", [True, False])
def test_a_copy_that_a_middleware_above_returns_ends_the_request_once(rf, dropped):
    finished = []

    def note(**kwargs):
        finished.append(scopes.current.get().finished)

    request_finished.connect(note)
    try:
        given = ConnectionGuardMiddleware(lambda request: HttpResponse(b"body"))(rf.get("/"))
        response = copy.copy(given)
        if dropped:
            del given
            gc.collect()
        response.close()
    finally:
        request_finished.disconnect(note)
    assert finished == [False]


@pytest.mark.usefixtures("observer")
def test_a_response_needs_no_garbage_collector(rf):
    def is_freed(make):
        response = make(rf.get("/"))
        response.close()
        gone = weakref.ref(response)
        del response
        return gone() is None

    def plain(request):
        return HttpResponse(b"body")

    gc.disable()
    try:
        if not is_freed(plain):
            pytest.skip("Django's own responses are cycles with this Python")
        assert is_freed(ConnectionGuardMiddleware(plain))
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
