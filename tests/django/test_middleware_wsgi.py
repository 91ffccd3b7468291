"""Each way in which a request ends under Django's WSGI handler, with app and middleware."""

from __future__ import annotations

import contextlib
import io

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections, transaction
from django.test import Client, RequestFactory

from tests.django import urls
from tests.support.handlers import wsgi

pytestmark = [
    pytest.mark.usefixtures("middleware_installed"),
    # Django warns of a synchronous body under ASGI, and of an asynchronous one under WSGI.
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]


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
