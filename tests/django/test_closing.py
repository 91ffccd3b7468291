"""`closing_connections` closes the connections of a thread, job or command at its end."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction

import conn_guard
from conn_guard import closing_connections


def query(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def with_block(alias):
    with closing_connections():
        query(alias)


@closing_connections
def decorated(alias):
    query(alias)


@closing_connections()
def decorated_with_parentheses(alias):
    query(alias)


async def async_with_block(alias):
    async with closing_connections():
        await sync_to_async(query)(alias)


@closing_connections
async def async_decorated(alias):
    await sync_to_async(query)(alias)


@closing_connections()
async def async_decorated_with_parentheses(alias):
    await sync_to_async(query)(alias)


def in_loop(function):
    """Return *function* as a synchronous function.

    async_to_sync would run its synchronous code on the calling thread; asyncio.run() lets asgiref
    use another thread.
    """
    return lambda *args: asyncio.run(function(*args))


FORMS = {
    "with": with_block,
    "decorator": decorated,
    "decorator()": decorated_with_parentheses,
    "async with": in_loop(async_with_block),
    "async decorator": in_loop(async_decorated),
    "async decorator()": in_loop(async_decorated_with_parentheses),
    "async_to_sync": async_to_sync(async_decorated),
}


@pytest.mark.parametrize("max_age", [0, None])
@pytest.mark.parametrize("form", FORMS)
def test_the_end_closes_in_a_thread_that_lives_on(make_alias, observer, worker, form, max_age):
    alias = make_alias(CONN_MAX_AGE=max_age)
    worker(FORMS[form], alias)
    assert observer.settled(alias, 0)


@pytest.mark.parametrize("run", ["sync", "async"])
def test_without_it_the_connection_stays(alias, observer, worker, run):
    run = in_loop if run == "async" else async_to_sync
    worker(run(sync_to_async(query)), alias)
    assert observer.states(alias) == ["idle"]
    worker(run(sync_to_async(connections.close_all)))


def test_every_alias_is_closed_and_copies_too(make_alias, observer, worker):
    aliases = [make_alias(), make_alias(CONN_MAX_AGE=None)]

    @closing_connections
    def job():
        query(aliases[0])
        query(aliases[1])
        copy = connections[aliases[1]].copy()
        with copy.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert len(observer.states(aliases[1])) == 2
        return copy  # The caller keeps it alive.

    copy = worker(job)
    assert copy.connection is None
    assert [observer.settled(alias, 0) for alias in aliases] == [True, True]


def test_an_error_closes_and_passes_unchanged(alias, observer, worker):
    error = ValueError("on purpose")

    @closing_connections
    def fail():
        query(alias)
        raise error

    with pytest.raises(ValueError, match="on purpose") as raised:
        worker(fail)
    assert raised.value is error
    assert observer.settled(alias, 0)


@pytest.mark.parametrize("end", ["raise", "cancel"])
def test_an_async_error_or_cancellation_closes(alias, observer, worker, end):
    async def main():
        queried = asyncio.Event()

        @closing_connections
        async def job():
            await sync_to_async(query)(alias)
            queried.set()
            if end == "raise":
                raise ValueError("on purpose")
            await asyncio.sleep(30)

        running = asyncio.create_task(job())
        await queried.wait()
        if end == "cancel":
            running.cancel()
        await running

    with pytest.raises(ValueError if end == "raise" else asyncio.CancelledError):
        worker(in_loop(main))
    assert observer.settled(alias, 0)


def test_the_result_is_the_functions(worker):
    assert worker(closing_connections(lambda: 7)) == 7
    assert worker(in_loop(closing_connections(sync_to_async(lambda: 7)))) == 7


@pytest.mark.parametrize(
    "function",
    [decorated, decorated_with_parentheses, async_decorated],
    ids=lambda each: each.__name__,
)
def test_the_decorated_function_keeps_its_name_and_kind(function):
    assert function.__wrapped__.__name__ == function.__name__
    assert iscoroutinefunction(function) == function.__name__.startswith("async")
    assert list(inspect.signature(function).parameters) == ["alias"]


def test_a_method_can_be_decorated(alias, observer, worker):
    class Job:
        @closing_connections
        def run(self, name, *, twice):
            query(name)
            return twice * 2

    assert worker(functools.partial(Job().run, alias, twice=4)) == 8
    assert observer.settled(alias, 0)


def test_a_connection_of_another_thread_is_that_threads(alias, observer, worker, in_thread):
    worker(query, alias)
    in_thread(closing_connections(lambda: None))
    assert observer.states(alias) == ["idle"]


def test_a_connection_lent_by_another_thread_is_its_lenders(alias, observer, in_thread):
    query(alias)
    lent = connections[alias]
    lent.inc_thread_sharing()

    def borrow():
        connections[alias] = lent
        decorated(alias)

    in_thread(borrow)
    assert observer.states(alias) == ["idle"]
    lent.dec_thread_sharing()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_connection_inherited_over_a_fork_is_the_parents(alias, observer, worker):
    def fork():
        query(alias)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with closing_connections():
                    pass
                # The wrapper was inherited, but a connection that the child opens is the child's.
                wrapper = connections[alias]
                wrapper.connection = None
                decorated(alias)
                status = 0 if wrapper.connection is None else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        query(alias)

    worker(fork)
    assert observer.settled(alias, 1)


# Atomic blocks


@pytest.mark.parametrize("form", FORMS)
def test_a_connection_in_an_atomic_block_is_left_alone(alias, observer, worker, form):
    def surround():
        with transaction.atomic(using=alias):
            with connections[alias].cursor() as cursor:
                cursor.execute("CREATE TEMP TABLE state AS SELECT 7 AS value")
            FORMS[form](alias)
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT value FROM state")
                assert cursor.fetchall() == [(7,)]
        assert not connections[alias].closed_in_transaction

    worker(surround)
    assert "idle" in observer.states(alias)


def test_an_atomic_block_inside_commits_before_the_end(alias, observer, worker, django_db_setup):
    table = f"closing_{alias}"

    @closing_connections
    def job():
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute(f"CREATE TABLE {table} (id int)")

    worker(job)
    assert observer.settled(alias, 0)
    with observer.wrapper.cursor() as cursor:
        cursor.execute(f"DROP TABLE {table}")


@pytest.mark.parametrize("leave", ["BEGIN", "autocommit"])
def test_a_transaction_left_open_is_rolled_back_with_its_connection(alias, observer, worker, leave):
    @closing_connections
    def job():
        if leave == "autocommit":
            transaction.set_autocommit(False, using=alias)
        with connections[alias].cursor() as cursor:
            cursor.execute("BEGIN" if leave == "BEGIN" else "SELECT 1")
        assert observer.states(alias) == ["idle in transaction"]

    worker(job)
    assert observer.settled(alias, 0)


def test_a_failing_atomic_block_inside_rolls_back_and_closes(alias, observer, worker):
    @closing_connections
    def job():
        with transaction.atomic(using=alias):
            query(alias)
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        worker(job)
    assert observer.settled(alias, 0)
    worker(decorated, alias)


@pytest.mark.django_db
def test_a_test_case_keeps_its_transaction():
    connection = connections["default"]
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE state AS SELECT 7 AS value")
    for form in FORMS.values():
        form("default")
    with connection.cursor() as cursor:
        cursor.execute("SELECT value FROM state")
        assert cursor.fetchall() == [(7,)]


# On an event loop's thread


def test_a_connection_that_synchronous_code_opened_on_the_loops_thread_stays(
    alias, observer, worker, caplog
):
    def command():
        query(alias)
        in_loop(async_decorated)(alias)
        assert connections[alias].connection is not None
        query(alias)

    worker(command)
    assert observer.settled(alias, 1)
    assert caplog.messages == []


def test_a_connection_that_async_code_opened_unsafely_is_closed(
    alias, observer, worker, monkeypatch
):
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    async def main():
        wrapper = connections[alias]
        async with closing_connections():
            query(alias)
        assert wrapper.connection is None

    worker(in_loop(main))
    assert observer.settled(alias, 0)


# Mistakes


@pytest.mark.parametrize(
    "use", [closing_connections, lambda: closing_connections(print)], ids=["with", "decorator"]
)
def test_wrong_settings_are_refused_in_the_words_of_the_checks(settings, use):
    settings.CONN_GUARD = {"CLOZE": "auto"}
    message = r"^CONN_GUARD\['CLOZE'\] is not a setting of conn_guard\. Did you mean 'CLOSE'\?$"
    with pytest.raises(ImproperlyConfigured, match=message):
        use()


def test_settings_that_went_wrong_later_are_refused_at_the_call(settings, worker):
    settings.CONN_GUARD = {"CLOSE": "sometimes"}
    with pytest.raises(ImproperlyConfigured, match=r"CONN_GUARD\['CLOSE'\] is 'sometimes'"):
        worker(decorated, "default")
    with pytest.raises(ImproperlyConfigured, match=r"CONN_GUARD\['CLOSE'\] is 'sometimes'"):
        worker(in_loop(async_decorated), "default")


def generator():
    yield


async def async_generator():
    yield


@pytest.mark.parametrize(
    "function",
    [generator, async_generator, functools.partial(generator)],
    ids=["sync", "async", "partial"],
)
def test_a_generator_function_is_refused(function):
    message = "can't decorate the generator function .*generator.*: write 'with closing_connections"
    with pytest.raises(TypeError, match=message):
        closing_connections(function)
    with pytest.raises(TypeError, match=message):
        closing_connections()(function)


def test_a_generator_closes_with_a_block_inside_it(alias, observer, worker):
    def rows():
        with closing_connections():
            query(alias)
            yield 1

    worker(lambda: list(rows()))
    assert observer.settled(alias, 0)


def test_a_close_that_fails_hides_neither_the_jobs_error_nor_the_next_alias(
    make_alias, observer, worker, caplog, monkeypatch
):
    aliases = [make_alias(), make_alias()]

    @closing_connections
    def job():
        for alias in aliases:
            query(alias)
        close = connections[aliases[0]]._close
        monkeypatch.setattr(connections[aliases[0]], "_close", lambda: close() or 1 / 0)
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        worker(job)
    assert [observer.settled(alias, 0) for alias in aliases] == [True, True]
    assert caplog.messages == [f"The connection {aliases[0]!r} could not be closed."]


def test_the_package_exports_closing_connections():
    assert conn_guard.closing_connections is closing_connections
    assert "closing_connections" in conn_guard.__all__


def test_many_threads_share_one_decorated_function(alias, observer):
    threads = [threading.Thread(target=decorated, args=[alias]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert observer.settled(alias, 0)
