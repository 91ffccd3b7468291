"""Each way in which a request ends under Django's ASGI handler, with app and middleware."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.utils.decorators import sync_only_middleware

from conn_guard.connections import ownership
from tests.django import urls
from tests.support.handlers import asgi
from tests.support.polling import until

pytestmark = [
    pytest.mark.usefixtures("middleware_installed"),
    # Django warns of a synchronous body under ASGI, and of an asynchronous one under WSGI.
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),
]

SYNC = f"{__name__}.sync_only"

leaves_contexts_in_cycles = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="on Python 3.10 a call of sync_to_async leaves its context to the garbage collector",
)


@sync_only_middleware
def sync_only(get_response):
    return get_response


@pytest.fixture(params=["async", "sync"])
def chain(request, settings):
    """The mode of the middleware; a sync-only middleware below it makes it run in sync mode."""
    if request.param == "sync":
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, SYNC]
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
def test_asgi_a_send_that_raises_leaves_nothing_and_is_logged_once(
    url_alias, observer, view, caplog
):
    caplog.set_level(logging.INFO, "conn_guard")

    async def send(message):
        if message["type"] == "http.response.body":
            raise RuntimeError("Response content shorter than Content-Length")

    with pytest.raises(RuntimeError, match="shorter than Content-Length"):
        asyncio.run(asgi(f"/{view}/", send=send))
    assert observer.settled(url_alias, 0)
    [record] = until(lambda: [each for each in caplog.records if "never closed" in each.message])
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
    """Django notices a disconnect from 5.0 on; before, the view runs to its end."""
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
    """Query twice in a task that outlives its request.

    Return the states of its sessions, and whether they ended with the task.
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
        # The loop's default executor is still alive here.
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
        # Django reads the file on the thread that still runs the view's work.
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
