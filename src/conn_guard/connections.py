"""Who owns a connection and when it ends: this room holds the only code that closes the
application's connections.

A connection is owned by the thread that opened it or, on an event loop's thread, by the async
contexts that can see it. The owner is an object that CPython drops together with the thread or the
last of those contexts, at once and without the garbage collector; its finalizer closes what it
owned. Two rules follow for everything that a finalizer may run: it takes no lock that its thread
may hold, and it never asks for ``threading.current_thread()``, directly or by logging, which would
register a dummy thread for ever."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures.thread import _WorkItem
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload
from weakref import WeakSet, ref

from asgiref.sync import SyncToAsync, iscoroutinefunction, sync_to_async
from django.db import connections
from django.db.backends.signals import connection_created

from conn_guard import conf

if TYPE_CHECKING:
    from types import TracebackType

    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("conn_guard.middleware")

_Function = TypeVar("_Function", bound=Callable[..., Any])


def watch() -> None:
    """Give every connection that is opened from now on an owner; calling it again changes
    nothing.
    """
    connection_created.connect(_own, dispatch_uid="conn_guard.connections")


def _own(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    """Receive ``connection_created``. It never raises: Django would be left with a half-made
    connection in use.
    """
    try:
        vars(connection)["conn_guard_pid"] = os.getpid()
        if _is_lent(connection):
            return
        scope = _scope.get()
        if scope is not None:
            scope.add(connection)
        if not conf.current().close_with_owner:
            return
        loop = _running_loop()
        if loop is None:
            owner = _thread_owner()
            owner.wrappers.add(connection)
            owner.scope = scope
            if scope is not None and scope.finished:
                _own_after_request(connection)
            if scope is None or not scope.keep_persistent:
                _end_with_call(connection, scope)
        else:
            own_in_context(connection, loop)
    except Exception:
        logger.exception("The connection %r got no owner.", connection.alias)


# Owners


class _ThreadOwner:
    """What one thread opened, held by its ``threading.local`` alone, so that it goes when the
    thread goes.
    """

    def __init__(self) -> None:
        self.wrappers: WeakSet[BaseDatabaseWrapper] = WeakSet()
        self.pid = os.getpid()
        self.scope: RequestScope | None = None

    def __del__(
        self,
        getpid: Callable[[], int] = os.getpid,
        finalizing: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        # A forked child must not end its parent's sessions, and a process that ends takes its
        # sessions along.
        if getpid() != self.pid or finalizing():
            return
        for wrapper in list(self.wrappers):
            _abandon(wrapper)
        if self.scope is not None:
            self.scope.tell_if_unfinished()


class _ContextOwner:
    """One connection opened on an event loop's thread, held by the context that opened it and by
    every copy of that one.
    """

    def __init__(self, wrapper: BaseDatabaseWrapper, loop: asyncio.AbstractEventLoop) -> None:
        self.wrapper = ref(wrapper)
        self.loop = ref(loop)
        self.pid = os.getpid()

    def __del__(
        self,
        getpid: Callable[[], int] = os.getpid,
        finalizing: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        wrapper, loop = self.wrapper(), self.loop()
        if getpid() != self.pid or finalizing() or wrapper is None:
            return
        if loop is None or loop.is_closed():
            _abandon_outside_transaction(wrapper)
            return
        # The last context may be dropped by any thread and inside any allocation: the loop closes,
        # in its own time.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_close_unless_seen, wrapper)


class _LateOwner:
    """One connection opened after its request was over, on a thread of asgiref's, held by the task
    that asked for it.

    That thread ends with the context of the request, which Django before 6.1 often leaves in a
    cycle."""

    def __init__(self, wrapper: BaseDatabaseWrapper, loop: asyncio.AbstractEventLoop) -> None:
        self.wrapper = ref(wrapper)
        self.loop = ref(loop)
        self.pid = os.getpid()
        # It leads asgiref back to the same thread, and doesn't hold this owner yet.
        self.context = contextvars.copy_context()

    def __del__(
        self,
        getpid: Callable[[], int] = os.getpid,
        finalizing: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        loop = self.loop()
        if getpid() != self.pid or finalizing() or loop is None:
            return
        # Where the loop is closed, the end of the thread is left to close it.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_close_on_its_thread, self.wrapper, context=self.context)


_local = threading.local()
_context_owners: contextvars.ContextVar[tuple[_ContextOwner | _LateOwner, ...]] = (
    contextvars.ContextVar("conn_guard_owners", default=())
)


def _thread_owner() -> _ThreadOwner:
    owner: _ThreadOwner | None = getattr(_local, "owner", None)
    if owner is None or owner.pid != os.getpid():
        owner = _local.owner = _ThreadOwner()
    return owner


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def own_in_context(wrapper: BaseDatabaseWrapper, loop: asyncio.AbstractEventLoop) -> None:
    """Let this context, and all that it will be copied to, own *wrapper*; calling it again changes
    nothing.

    An engine calls it as it makes the wrapper, the receiver of ``connection_created`` as it is
    opened. From Python 3.12 on the end of the task counts as well: a context may be part of a
    cycle, and would then wait for the garbage collector."""
    if not _hold(_ContextOwner, wrapper, loop):
        return
    task = asyncio.current_task(loop)
    if task is not None and sys.version_info >= (3, 12):
        _close_after(task, wrapper)


def own_from_birth(wrapper: BaseDatabaseWrapper) -> None:
    """Let this context own *wrapper*, which an engine is making here; on a thread without an event
    loop do nothing.
    """
    loop = _running_loop()
    if loop is not None and conf.current().close_with_owner:
        own_in_context(wrapper, loop)


def _own_after_request(wrapper: BaseDatabaseWrapper) -> None:
    """Let the task whose synchronous code opens *wrapper* own it; asgiref hands it what is set in
    this context.
    """
    loop = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
    if loop is not None:
        _hold(_LateOwner, wrapper, loop)


def _hold(
    kind: type[_ContextOwner | _LateOwner],
    wrapper: BaseDatabaseWrapper,
    loop: asyncio.AbstractEventLoop,
) -> bool:
    """Let this context hold an owner of *wrapper*, and return whether it held none before."""
    owners = [owner for owner in _context_owners.get() if owner.wrapper() is not None]
    if any(owner.wrapper() is wrapper for owner in owners):
        return False
    _context_owners.set((*owners, kind(wrapper, loop)))
    return True


def _close_after(task: asyncio.Task[Any], wrapper: BaseDatabaseWrapper) -> None:
    # In an empty context: a callback would hold a copy of this one, and with it the owner.
    task.add_done_callback(
        functools.partial(_task_done, ref(wrapper)), context=contextvars.Context()
    )


def _task_done(wrapper_ref: ref[BaseDatabaseWrapper], _: object) -> None:
    wrapper = wrapper_ref()
    if wrapper is not None:
        _close_unless_seen(wrapper)


def _close_unless_seen(wrapper: BaseDatabaseWrapper) -> None:
    """Close *wrapper* on its loop's thread, or after the task that can still see it.

    A task may have touched the wrapper before it started the task that opened it, and may hold
    state on its session. Python tells the contexts of other tasks from 3.12 on; before, a
    transaction is all that can be seen."""
    if wrapper.connection is None:
        return
    if sys.version_info >= (3, 12):
        for task in asyncio.all_tasks():
            if _sees(task.get_context(), wrapper):
                _close_after(task, wrapper)
                return
    _abandon_outside_transaction(wrapper)


def _sees(context: contextvars.Context, wrapper: BaseDatabaseWrapper) -> bool:
    return any(
        owner.wrapper() is wrapper for owner in context.get(_context_owners, ())
    ) or context.run(_is_current, wrapper)


def _close_on_its_thread(wrapper_ref: ref[BaseDatabaseWrapper]) -> None:
    _start(sync_to_async(_close_here, thread_sensitive=True)(wrapper_ref))


def _start(closing: Coroutine[Any, Any, None]) -> None:
    """Let *closing* run on this loop without anybody waiting for it."""
    task = asyncio.ensure_future(_suppressed(closing))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


# The loop itself holds its tasks weakly.
_closing: set[asyncio.Future[None]] = set()


async def _suppressed(closing: Coroutine[Any, Any, None]) -> None:
    # asgiref raises where the thread has ended, which closed what it owned.
    with contextlib.suppress(RuntimeError):
        await closing


def _close_here(wrapper_ref: ref[BaseDatabaseWrapper]) -> None:
    wrapper: Any = wrapper_ref()
    # What a call that was not thread-sensitive opened is on another thread, which may be at work on
    # it.
    if wrapper is not None and wrapper._thread_ident == threading.get_ident():
        _abandon_outside_transaction(wrapper)


def _end_with_call(wrapper: BaseDatabaseWrapper, scope: RequestScope | None) -> None:
    """Close *wrapper* when the executor's call that opens it returns.

    A view may await such a call (``asyncio.to_thread``), and Django before 6.2 renders its error
    pages in one. The executor's thread lives on, and no later code of the request reaches it. The
    future of the call runs its callbacks on the thread of the call.
    """
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code is not _WorkItem.run.__code__:
        frame = frame.f_back
    if frame is None or _is_asgirefs_thread():
        return
    future = frame.f_locals["self"].future
    if scope is not None:
        future.add_done_callback(lambda _: scope.end())
    elif _is_default_executors_thread() and wrapper.settings_dict["CONN_MAX_AGE"] == 0:
        # ``run_in_executor`` passes no context on. Which thread serves the next call is left to
        # chance, so no state can be meant to stay, and no setting asks for the connection.
        closed = functools.partial(_close_after_call, ref(wrapper))
        future.add_done_callback(closed)


def _close_after_call(wrapper_ref: ref[BaseDatabaseWrapper], _: object) -> None:
    wrapper = wrapper_ref()
    if wrapper is not None and wrapper.connection is not None and not in_transaction(wrapper):
        _abandon(wrapper)


def _is_default_executors_thread() -> bool:
    here = threading.get_ident()
    # asyncio names its threads so.
    return any(
        each.ident == here and each.name.startswith("asyncio_") for each in threading.enumerate()
    )


def _is_asgirefs_thread() -> bool:
    """Return whether this thread runs thread-sensitive code, where a request ends by itself."""
    here = threading.get_ident()
    # In one step: another thread may begin a request.
    executors: Any = list(vars(SyncToAsync.context_to_thread_executor)["data"].values())
    return any(
        thread.ident == here
        for executor in (SyncToAsync.single_thread_executor, *executors)
        for thread in list(executor._threads)
    )


# Closing


def _is_lent(wrapper: Any) -> bool:
    """Return whether *wrapper* is its lender's to close: shared between threads on purpose, as
    LiveServerTestCase does, or inherited over a fork, where closing it would end the session of the
    parent.

    ``allow_thread_sharing`` tells the former too, but takes a lock that the thread of a finalizer
    may hold."""
    return bool(wrapper._thread_sharing_count) or getattr(wrapper, "conn_guard_pid", None) not in (
        None,
        os.getpid(),
    )


def _abandon(wrapper: Any) -> None:
    """Close *wrapper*, whose owner is gone, and stay silent: a finalizer can neither raise nor
    log.
    """
    if wrapper.connection is None or _is_lent(wrapper):
        return
    with contextlib.suppress(Exception):
        if wrapper._thread_ident == threading.get_ident():
            wrapper.close()
        else:
            wrapper.inc_thread_sharing()
            try:
                wrapper.close()
            finally:
                wrapper.dec_thread_sharing()


def close_unused(wrapper: BaseDatabaseWrapper) -> None:
    """Close *wrapper*, which the engine found to be used by nobody, from whatever thread; it never
    raises.
    """
    _abandon(wrapper)


def _abandon_outside_transaction(wrapper: BaseDatabaseWrapper) -> None:
    """Close *wrapper*, or leave it to the loop's thread where a task that can't be told may be in a
    transaction on it.
    """
    if wrapper.connection is not None and in_transaction(wrapper):
        _thread_owner().wrappers.add(wrapper)
    else:
        _abandon(wrapper)


def in_transaction(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper* is in an atomic block, has another autocommit than its settings ask
    for, or is in a transaction that only the driver knows of, such as a raw BEGIN. PostgreSQL and
    SQLite tell the latter, others don't.

    **Source:** libpq's PQTRANS_INTRANS and PQTRANS_INERROR are 2 and 3.
    """
    if wrapper.in_atomic_block or wrapper.autocommit != wrapper.settings_dict["AUTOCOMMIT"]:
        return True
    raw: Any = wrapper.connection
    status = getattr(getattr(raw, "info", None), "transaction_status", None)
    return status in (2, 3) if status is not None else getattr(raw, "in_transaction", False) is True


_WROTE = "SELECT pg_catalog.txid_current_if_assigned() IS NOT NULL"


def _rolled_back_reading(wrapper: BaseDatabaseWrapper) -> bool:
    """Roll *wrapper* back where its settings have autocommit off and its transaction wrote nothing;
    return whether they have and it did.

    With such settings every query opens a transaction, and a view that only reads commits none.
    """
    if (
        wrapper.settings_dict["AUTOCOMMIT"]
        or wrapper.autocommit
        or wrapper.in_atomic_block
        or wrapper.vendor != "postgresql"
    ):
        return False
    try:
        # The driver's own cursor: no wrapper, log or count of the application's sees the question.
        with wrapper.connection.cursor() as cursor:
            cursor.execute(_WROTE)
            if cursor.fetchone()[0]:
                return False
        wrapper.rollback()
    except Exception:  # noqa: BLE001 - an aborted transaction, or a dead session: it is closed
        return False
    return True


def _close(wrapper: BaseDatabaseWrapper) -> None:
    try:
        wrapper.close()
        # Closing inside an atomic block that nobody will leave makes Django refuse every later
        # query of this thread.
        if wrapper.in_atomic_block and _is_current(wrapper):
            del connections[wrapper.alias]
    except Exception:
        logger.exception("The connection %r could not be closed.", wrapper.alias)


def _close_if_unusable_or_obsolete(wrapper: BaseDatabaseWrapper) -> None:
    try:
        wrapper.close_if_unusable_or_obsolete()
    except Exception:
        logger.exception("The connection %r could not be closed.", wrapper.alias)


def _is_current(wrapper: BaseDatabaseWrapper) -> bool:
    return any(current is wrapper for current in connections.all(initialized_only=True))


# The end of a request


def has_own_thread() -> bool:
    """Return whether the synchronous code of this request has a thread that ends with it.

    Django's ASGI handler provides one, its test client doesn't.
    """
    return SyncToAsync.thread_sensitive_context.get(None) is not None


class RequestScope:
    """The connections of one request: those that it found open, and those that it opened, with the
    thread of each.
    """

    __slots__ = (
        "close_found",
        "ended",
        "finished",
        "found",
        "found_in_transaction",
        "found_on",
        "keep_persistent",
        "opened",
        "outer",
        "view",
        "waits",
    )

    def __init__(
        self,
        *,
        view: Callable[[], str],
        keep_persistent: bool,
        close_found: bool = False,
        waits: bool = True,
    ) -> None:
        """Begin a request. *view* names it. *keep_persistent*: what CONN_MAX_AGE keeps stays open.
        *close_found*: what the request found open is closed as well. *waits*: its end may be
        awaited, since no client waits for it.
        """
        # Weak: a copy that the request drops is not kept open for it. A list that only grows may
        # be read by one thread while another one adds to it.
        self.opened: list[tuple[ref[BaseDatabaseWrapper], int]] = []
        self.found: set[BaseDatabaseWrapper] = set()
        self.found_in_transaction: set[BaseDatabaseWrapper] = set()
        self.found_on = 0
        self.view = view
        self.keep_persistent = keep_persistent
        self.close_found = close_found
        self.waits = waits
        self.ended = False
        self.finished = False
        # A view may serve another request, as a test client does.
        outer = _scope.get()
        self.outer = None if outer is None or outer.ended else outer
        _scope.set(self)

    def add(self, wrapper: BaseDatabaseWrapper) -> None:
        """Note that the request opened *wrapper* on this thread."""
        here = threading.get_ident()
        if not any(each() is wrapper and ident == here for each, ident in self.opened):
            self.opened.append((ref(wrapper), here))

    def look(self) -> None:
        """Note what is open on this thread before the request runs on it."""
        self.found_on = threading.get_ident()
        for wrapper in connections.all(initialized_only=True):
            if wrapper.connection is not None:
                self.found.add(wrapper)
                if in_transaction(wrapper):
                    self.found_in_transaction.add(wrapper)

    def end(self) -> None:
        """Close what the request leaves on this thread; what it found in a transaction is not its
        own to end.
        """
        self.ended = True
        if not self.opened and not self.found:
            return
        here = threading.get_ident()
        opened = {wrapper for wrapper, ident in self._opened() if ident == here}
        found = self.found if self.found_on == here else set()
        for wrapper in (opened | found) - self.found_in_transaction:
            if wrapper.connection is None or _is_lent(wrapper):
                continue
            if in_transaction(wrapper) and not _rolled_back_reading(wrapper):
                message = "%s left a transaction open on %r; it is rolled back with its connection."
                logger.warning(message, self.view(), wrapper.alias)
                _close(wrapper)
                # Closed inside an atomic block it still looks open, and this was its end.
                self.opened = [each for each in self.opened if each[0]() is not wrapper]
                self.found.discard(wrapper)
            elif wrapper not in opened:
                if self.close_found:
                    _close(wrapper)
            elif self.keep_persistent:
                _close_if_unusable_or_obsolete(wrapper)
            else:
                _close(wrapper)

    async def aend(self) -> None:
        """Do what :meth:`end` does, on the event loop's thread and on the one that runs the
        request's synchronous code.

        The latter may still be busy, with work that the view left behind and that may never end.
        So nobody waits for it unless this scope *waits*.
        """
        self.end()
        if self.is_open_elsewhere():
            if self.waits:
                await self._end_elsewhere()
            else:
                _start(self._end_elsewhere())

    async def _end_elsewhere(self) -> None:
        # Django's own close may have come first.
        if self.is_open_elsewhere():
            await sync_to_async(self.end, thread_sensitive=True)()

    def is_open_elsewhere(self) -> bool:
        """Return whether another thread holds a connection open that the request opened there."""
        here = threading.get_ident()
        return any(
            ident != here and wrapper.connection is not None for wrapper, ident in self._opened()
        )

    def _opened(self) -> list[tuple[BaseDatabaseWrapper, int]]:
        opened = [(each(), ident) for each, ident in list(self.opened)]
        return [(wrapper, ident) for wrapper, ident in opened if wrapper is not None]

    def finish(self) -> None:
        """End for the last time: the response is closed."""
        self.finished = True
        self.end()
        if _scope.get() is self:
            _scope.set(self.outer)
        self.outer = None
        # A thread that lives on may hold this scope: it keeps no request and no connection alive.
        self.view = _over
        self.found.clear()
        self.found_in_transaction.clear()

    def tell_if_unfinished(self) -> None:
        """Log that the response was never closed. Called by the finalizer of the thread, which must
        not log itself.
        """
        if self.finished:
            return
        self.finished = True
        # A thread of its own, because logging in a dying one registers a dummy thread; at exit
        # there may be none.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._tell, name="conn_guard", daemon=True).start()

    def _tell(self) -> None:
        logger.info(
            "The response of %s was never closed: the server's send raised, or the client left. Its"
            " connection is closed; in Django alone it would stay open, idle, until the garbage"
            " collector runs.",
            self.view(),
        )


def _over() -> str:
    return "A request that is over"


_scope: contextvars.ContextVar[RequestScope | None] = contextvars.ContextVar(
    "conn_guard_scope", default=None
)


def current_scope() -> RequestScope | None:
    """Return the request that is running here, or None outside of one."""
    scope = _scope.get()
    return None if scope is None or scope.finished else scope


def current_view() -> str:
    """Return the view of the request that is running here, or an empty string outside of one."""
    scope = current_scope()
    return "" if scope is None else scope.view()


# The end of a job


class JobScope(RequestScope):
    """The connections of one job of a worker, whose thread lives on: at the job's end none of that
    thread stays open.

    Only a transaction that was open before the job is left alone: that of a test which runs a
    worker in its own thread."""

    __slots__ = ()

    def __init__(self, name: Callable[[], str]) -> None:
        """Begin a job on this thread; *name* names it."""
        super().__init__(view=name, keep_persistent=False, close_found=True)
        self.look()

    def finish(self) -> None:
        """End the job; what code of the worker's own opened on this thread meanwhile is closed with
        it.
        """
        self.found.update(_open_here())
        self.end()
        # A job that called asyncio.run() left its synchronous code to a thread of asgiref's, which
        # such a call reaches again.
        if self.is_open_elsewhere() and _running_loop() is None:
            asyncio.run(sync_to_async(self.end, thread_sensitive=True)())
        super().finish()


# The public helpers


@contextmanager
def pin(alias: str = "default") -> Iterator[None]:
    """Forbid the engine to close or replace this thread's connection of *alias*, for state that no
    query can tell of.

    Only ``conn_guard.engine`` ends connections of living threads, so with another engine there is
    nothing to forbid."""
    wrapper: Any = connections[alias]
    wrapper.conn_guard_pins = getattr(wrapper, "conn_guard_pins", 0) + 1
    try:
        yield
    finally:
        wrapper.conn_guard_pins -= 1


class _Closing:
    """Close this thread's connections at the end, whatever happens; outside atomic blocks."""

    def __init__(self) -> None:
        conf.require()

    def __enter__(self) -> None:
        conf.require()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        close_all()

    async def __aenter__(self) -> None:
        conf.require()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        close_all()
        await sync_to_async(close_all, thread_sensitive=True)()

    def __call__(self, function: _Function) -> _Function:
        if iscoroutinefunction(function):

            @functools.wraps(function)
            async def closing_async(*args: Any, **kwargs: Any) -> Any:
                async with self:
                    return await function(*args, **kwargs)

            return cast("_Function", closing_async)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                "closing_connections can't decorate the generator function"
                f" {getattr(function, '__qualname__', function)!r}, whose body runs after the call:"
                " write 'with closing_connections():' inside it."
            )

        @functools.wraps(function)
        def closing(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast("_Function", closing)


@overload
def closing_connections() -> _Closing: ...
@overload
def closing_connections(function: _Function) -> _Function: ...
def closing_connections(function: _Function | None = None) -> _Closing | _Function:
    """Return a context manager and decorator, sync and async, that closes this thread's connections
    at its end.

    For code that no request surrounds: threads, jobs, schedulers, commands. It closes on success
    and on error, every alias, also what ``connection.copy()`` made, and leaves a connection that is
    inside an atomic block alone. Raises ImproperlyConfigured where CONN_GUARD is wrong."""
    return _Closing() if function is None else _Closing()(function)


def close_all() -> None:
    """Close every connection of this thread that is open and outside an atomic block."""
    for wrapper in _open_here():
        if not wrapper.in_atomic_block:
            _close(wrapper)


def _open_here() -> set[BaseDatabaseWrapper]:
    """Return what is open on this thread and its own; on an event loop's thread what this context
    sees.

    What synchronous code opened on a loop's thread can't be closed while the loop runs, and is that
    code's."""
    copies = _thread_owner().wrappers if _running_loop() is None else ()
    wrappers = {*connections.all(initialized_only=True), *copies}
    return {
        wrapper for wrapper in wrappers if wrapper.connection is not None and not _is_lent(wrapper)
    }
