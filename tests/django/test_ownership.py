"""With the app alone, a connection ends with the thread or async context that opened it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import sync_to_async
from django.db import ConnectionHandler, connections, transaction

from conn_guard.connections import closing, ownership
from conn_guard.connections.jobs import JobScope


@pytest.fixture(autouse=True)
def _no_garbage_collector():
    """Switch the garbage collector off: owners must not need it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def _async_unsafe(monkeypatch):
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")


def query(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def test_the_end_of_a_thread_closes_what_it_opened(alias, observer, in_thread):
    in_thread(query, alias)
    assert observer.settled(alias, 0)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # psycopg warns of a connection that the collector closes.
def test_plain_django_leaves_it_open(alias, observer, in_thread, settings):
    settings.CONN_GUARD = {"CLOSE_WITH_OWNER": False}
    in_thread(query, alias)
    assert observer.states(alias) == ["idle"]
    gc.collect()
    assert observer.settled(alias, 0)


@pytest.mark.parametrize("max_age", [0, 60, None])
def test_a_persistent_connection_ends_with_its_thread_too(make_alias, observer, in_thread, max_age):
    alias = make_alias(CONN_MAX_AGE=max_age)
    in_thread(query, alias)
    assert observer.settled(alias, 0)


def test_a_thread_that_fails_closes_too(alias, observer):
    def fail():
        query(alias)
        raise ValueError("on purpose")

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="on purpose"):
        pool.submit(fail).result()
    assert observer.settled(alias, 0)


def test_an_executor_that_is_shut_down_closes_and_one_that_lives_on_keeps(alias, observer):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(query, [alias] * 2))
        assert observer.states(alias)
    assert observer.settled(alias, 0)


def test_what_keeps_the_wrapper_alive_does_not_keep_the_session(alias, observer, in_thread):
    kept = []

    def keep():
        query(alias)
        kept.append((connections[alias], connections[alias].connection))

    in_thread(keep)
    assert observer.settled(alias, 0)


def test_copies_and_own_handlers_are_owned(alias, observer, in_thread):
    def copy():
        for wrapper in (connections[alias].copy(), ConnectionHandler(connections.settings)[alias]):
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")

    in_thread(copy)
    assert observer.settled(alias, 0)


def test_a_transaction_left_open_in_a_thread_ends_with_it(alias, observer, in_thread):
    def leave():
        transaction.atomic(using=alias).__enter__()
        query(alias)

    in_thread(leave)
    assert observer.settled(alias, 0)


def test_a_dying_thread_leaves_no_dummy_thread(alias, in_thread):
    in_thread(query, alias)
    assert not [each for each in threading.enumerate() if isinstance(each, threading._DummyThread)]


def test_a_connection_lent_to_a_thread_is_its_lenders(alias, observer, in_thread):
    wrapper = connections[alias]
    wrapper.inc_thread_sharing()

    def borrow():
        connections[alias] = wrapper
        query(alias)
        wrapper.dec_thread_sharing()

    in_thread(borrow)
    assert observer.states(alias) == ["idle"]
    wrapper.close()


def test_a_connection_lent_after_it_was_opened_is_its_lenders(alias, observer, in_thread):
    wrappers = []

    def lend():
        query(alias)
        connections[alias].inc_thread_sharing()
        wrappers.append(connections[alias])

    in_thread(lend)
    assert observer.states(alias) == ["idle"]
    wrappers[0].close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_end_its_parents_sessions(alias, observer, worker):
    """The finalizer doesn't even try; psycopg would also refuse to close in a child."""

    def fork():
        query(alias)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            closing.abandon = lambda wrapper: os.write(write, b"closed")
            ownership._local.owner = None  # In the child this has the effect of the thread's end.
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with open(read, "rb") as pipe:
            return pipe.read()

    assert worker(fork) == b""
    assert observer.states(alias) == ["idle"]


def test_a_failure_in_the_receiver_does_not_reach_the_query(alias, worker, caplog, monkeypatch):
    monkeypatch.setattr(ownership, "_thread_owner", None)
    worker(query, alias)
    worker(lambda: connections[alias].close())
    assert caplog.messages == [f"The connection {alias!r} got no owner."]


# On an event loop's thread, with DJANGO_ALLOW_ASYNC_UNSAFE.


@pytest.mark.usefixtures("_async_unsafe")
def test_the_end_of_a_task_closes_what_it_opened(alias, observer):
    async def main():
        async def task():
            query(alias)

        await asyncio.create_task(task())
        await asyncio.sleep(0)
        return await asyncio.to_thread(observer.settled, alias, 0)

    assert asyncio.run(main())


@pytest.mark.usefixtures("_async_unsafe")
@pytest.mark.parametrize("end", ["raise", "cancel"])
def test_a_task_that_fails_or_is_cancelled_closes(alias, observer, end):
    async def main():
        async def task():
            query(alias)
            if end == "raise":
                raise ValueError("on purpose")
            await asyncio.sleep(30)

        running = asyncio.create_task(task())
        await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        del running
        return await asyncio.to_thread(observer.settled, alias, 0)

    assert asyncio.run(main())


@pytest.mark.usefixtures("_async_unsafe")
def test_a_child_that_opens_its_parents_connection_does_not_end_it_in_the_parents_atomic_block(
    alias, observer, in_thread
):
    async def main():
        wrapper = connections[alias]  # The parent touches the wrapper, and the child inherits it.
        opened = asyncio.Event()

        async def child():
            query(alias)
            opened.set()
            await asyncio.sleep(0.01)

        running = asyncio.create_task(child())
        await opened.wait()
        with transaction.atomic(using=alias):
            query(alias)
            await running
            del running
            await asyncio.sleep(0.01)
            query(alias)
            assert wrapper.connection is not None
        assert not wrapper.closed_in_transaction

    in_thread(lambda: asyncio.run(main()))
    assert observer.settled(alias, 0)


@pytest.mark.usefixtures("_async_unsafe")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python tells a task's context from 3.12 on")
def test_a_child_that_opens_its_parents_connection_leaves_its_session_to_the_parent(
    alias, observer
):
    async def parent():
        connections[alias]

        async def child():
            with connections[alias].cursor() as cursor:
                cursor.execute("CREATE TEMP TABLE state AS SELECT 1")

        await asyncio.create_task(child())
        await asyncio.sleep(0.01)
        with connections[alias].cursor() as cursor:
            cursor.execute("TABLE state")
            assert cursor.fetchall() == [(1,)]

    async def main():
        await asyncio.create_task(parent())
        return await asyncio.to_thread(observer.settled, alias, 0)

    assert asyncio.run(main())


@pytest.mark.usefixtures("_async_unsafe")
@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="before, such a context waits for the garbage collector"
)
def test_a_context_in_a_cycle_does_not_wait_for_the_collector(alias, observer):
    async def main():
        async def task():
            cycle = {}
            cycle["context"] = (contextvars.copy_context(), cycle)
            query(alias)
            cycle["context"] = (contextvars.copy_context(), cycle)

        await asyncio.create_task(task())
        return await asyncio.to_thread(observer.settled, alias, 0)

    assert asyncio.run(main())


@pytest.mark.usefixtures("_async_unsafe")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python tells a task's context from 3.12 on")
def test_a_task_that_was_started_after_the_connection_was_opened_keeps_it(alias, observer):
    async def child():
        await asyncio.sleep(0.05)
        with connections[alias].cursor() as cursor:
            cursor.execute("TABLE state")
            return cursor.fetchall()

    async def parent():
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE state AS SELECT 1")
        return asyncio.create_task(child())

    async def main():
        assert await (await asyncio.create_task(parent())) == [(1,)]
        return await asyncio.to_thread(observer.settled, alias, 0)

    assert asyncio.run(main())


@pytest.mark.usefixtures("_async_unsafe")
def test_a_transaction_that_another_task_may_be_in_is_left_to_the_loops_thread(
    alias, observer, in_thread
):
    async def main():
        async def task():
            transaction.atomic(using=alias).__enter__()
            query(alias)

        await asyncio.create_task(task())
        await asyncio.sleep(0.01)
        assert observer.states(alias) == ["idle in transaction"]

    in_thread(lambda: asyncio.run(main()))
    assert observer.settled(alias, 0)


@pytest.mark.usefixtures("_async_unsafe")
def test_a_context_dropped_after_its_loop_was_closed_closes(alias, observer):
    context = contextvars.copy_context()
    context.run(asyncio.run, _query_in_loop(alias))
    del context
    assert observer.settled(alias, 0)


def test_a_close_that_is_cancelled_before_it_begins_is_no_coroutine_without_await(recwarn):
    async def main():
        closing.run_unattended(sync_to_async(pytest.fail, thread_sensitive=True), "was called")
        (task,) = asyncio.all_tasks() - {asyncio.current_task()}
        task.cancel()

    asyncio.run(main())
    gc.collect()
    assert [str(each.message) for each in recwarn] == []


async def _query_in_loop(alias):
    query(alias)


@pytest.mark.usefixtures("_async_unsafe")
def test_a_context_that_reopens_gathers_no_owners(alias):
    async def main():
        for _ in range(5):
            query(alias)
            connections[alias].close()
        assert len(ownership._context_owners.get()) == 1

    asyncio.run(main())


def test_a_job_is_not_blamed_for_the_atomic_block_of_an_earlier_one(alias, in_thread, caplog):
    kept = []

    def never_leave():
        scope = JobScope(lambda: "never_leave")
        kept.append(connections[alias])
        block = transaction.atomic(alias)
        block.__enter__()
        query(alias)
        scope.finish()

    def jobs():
        never_leave()
        scope = JobScope(lambda: "query")
        query(alias)
        scope.finish()

    in_thread(jobs)
    assert [record.args[0] for record in caplog.records] == ["never_leave"]
