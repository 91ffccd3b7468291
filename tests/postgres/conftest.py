"""Aliases on the engine and servers of the tests' own, for the tests of rings 2 and 3."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import polling

if TYPE_CHECKING:
    from tests.support.own_server import OwnServer

GUARDED = "conn_guard.engine.postgresql"


class Alias:
    """An alias of the test's own, whose name is its application_name, seen by its application and
    from outside.
    """

    def __init__(
        self, name: str, ask: Callable[..., list[tuple[Any, ...]]], until: Callable[..., Any]
    ) -> None:
        self.name = name
        self.ask = ask
        self.until = until

    @property
    def wrapper(self) -> Any:
        """The wrapper of this thread."""
        from django.db import connections

        return connections[self.name]

    def query(
        self, statement: str = "SELECT 1", parameters: object = None
    ) -> list[tuple[Any, ...]]:
        """Run *statement* as an application does, on this thread, and return its rows."""
        with self.wrapper.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def pid(self) -> int:
        """Return the pid of the session that serves this thread; connects if need be."""
        return self.query("SELECT pg_backend_pid()")[0][0]

    def sessions(self) -> list[tuple[int, str, str]]:
        """Return the pid, the state and the last statement of every session of this alias."""
        return self.ask(
            "SELECT pid, state, query FROM pg_stat_activity WHERE application_name LIKE %s ORDER BY"
            " backend_start",
            [self.name + "%"],
        )

    def pids(self) -> set[int]:
        return {pid for pid, _, _ in self.sessions()}

    def end_sessions(self) -> None:
        """End every session of this alias, as an operator does, and return when they have left."""
        pids = list(self.pids())
        self.ask("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
        self.until(
            lambda: not self.ask("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", [pids])
        )
        # Within a millisecond of its last use a session is not at rest, and a quick server ends it
        # sooner.
        threading.Event().wait(0.005)

    def becomes(self, count: int) -> bool:
        """Return whether this alias comes to have *count* sessions."""
        return bool(self.until(lambda: len(self.sessions()) == count))


@pytest.fixture
def make_engine(ask, until, django_db_blocker) -> Iterator[Callable[..., Alias]]:
    """Return a function that adds an alias on the engine, with settings of its own; a server's
    address may be given.
    """
    from django.db import connections

    made: list[str] = []

    def make(
        *, options: dict[str, object] | None = None, engine: str = GUARDED, **settings: object
    ) -> Alias:
        name = f"guarded_{uuid.uuid4().hex[:12]}"
        default = connections.settings["default"]
        options = {**default["OPTIONS"], "application_name": name, **(options or {})}
        connections.settings[name] = {**default, "ENGINE": engine, "OPTIONS": options, **settings}
        made.append(name)
        return Alias(name, ask, until)

    with django_db_blocker.unblock():
        yield make
        for name in made:
            wrapper = connections[name]
            if wrapper.closed_in_transaction or wrapper.in_atomic_block:
                wrapper.in_atomic_block = wrapper.closed_in_transaction = False
            wrapper.close()
            if getattr(wrapper, "pool", None):
                wrapper.close_pool()
            del connections[name]
            del connections.settings[name]


@pytest.fixture
def guarded(make_engine) -> Alias:
    """An alias on the engine, whose connections persist."""
    return make_engine(CONN_MAX_AGE=None)


@pytest.fixture(params=[0, 60, None, "pool"])
def alias(request: pytest.FixtureRequest, make_engine: Callable[..., Alias]) -> Alias:
    """An alias on the engine for each kind of CONN_MAX_AGE, and one with a pool."""
    from tests.support.engine import pooled

    if request.param == "pool":
        return pooled(make_engine)  # type: ignore[no-any-return]
    return make_engine(CONN_MAX_AGE=request.param)


@pytest.fixture
def worker() -> Iterator[Callable[..., Any]]:
    """Run a function in a thread that lives on, as an executor's does, and return its result."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=30)


@pytest.fixture
def reclaimer_passes(make_engine, worker) -> Callable[[], None]:
    """Return a function that waits until the reclaimer has checked all due connections twice."""

    def wait() -> None:
        for _ in range(2):
            canary = make_engine(CONN_MAX_AGE=None)
            worker(canary.pid)
            assert canary.becomes(0)

    return wait


@pytest.fixture
def table(ask) -> str:
    """An empty table with a number in it; it goes with the tests' database, since a failed test may
    hold it still.
    """
    name = f"engine_{uuid.uuid4().hex[:12]}"
    ask(f"CREATE TABLE {name} (id serial PRIMARY KEY, n int)")
    return name


@pytest.fixture(scope="module")
def started(django_db_blocker) -> Iterator[OwnServer]:
    """A server of this module's own; modules that need it otherwise start theirs under the same
    name.
    """
    from tests.support.own_server import own_server

    with django_db_blocker.unblock(), own_server() as server:
        yield server


@pytest.fixture
def server(started) -> Iterator[OwnServer]:
    """The module's own server, cleaned after each test."""
    yield started
    started.clean()


@pytest.fixture
def signals_until_lost(server, monkeypatch) -> list[int]:
    """The pids that get a signal, in order; before the second one the sender's session ends."""
    from conn_guard.sessions.server import Server

    order: list[int] = []
    sent = Server.signal

    def signal(self, session):
        order.append(session.pid)
        if len(order) == 2:
            own = self.session.value("SELECT pg_backend_pid() AS pid", ())
            server.ask("SELECT pg_terminate_backend(%s)", [own])
        return sent(self, session)

    monkeypatch.setattr(Server, "signal", signal)
    return order


@pytest.fixture
def alive(ask):
    """Return a function that tells whether a session is still there."""
    return lambda session: bool(ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [session.pid]))


@pytest.fixture
def rested(ask, application_name):
    """Return a function that waits until the test's sessions are idle for 0.3 s.

    It returns the arguments that reap them.
    """

    def wait() -> tuple[str, ...]:
        polling.until(
            lambda: ask(
                "SELECT min(clock_timestamp() - coalesce(state_change, backend_start)) > interval"
                " '0.35 s' FROM pg_stat_activity WHERE application_name LIKE %s",
                [f"{application_name}%"],
            )[0][0]
        )
        return ("--idle-for", "0.3s", "--application-name", f"{application_name}*")

    return wait


@pytest.fixture
def address():
    """The address of the test server, for a RawClient."""
    from django.db import connections

    settings = connections["default"].settings_dict
    if settings["PASSWORD"]:
        pytest.skip("a RawClient sends no password")
    return {
        "host": settings["HOST"] or "127.0.0.1",
        "port": int(settings["PORT"] or 5432),
        "user": settings["USER"],
        "database": settings["NAME"],
    }


@pytest.fixture
def _root_logger():
    """Celery's worker sets up the root logger of its process, which is ours."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
