"""Gives every connection an owner, whose end closes it.

A connection is owned by the thread that opened it or, on an event loop's thread, by the contexts
that can see it. The owner is an object that CPython drops together with the thread or the last of
those contexts, at once and without the garbage collector. Its finalizer closes what it owned.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures.thread import _WorkItem
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from asgiref.sync import SyncToAsync, sync_to_async
from django.db import connections
from django.db.backends.signals import connection_created

from conn_guard import conf
from conn_guard.connections import closing, events, scopes
from conn_guard.connections.closing import in_transaction
from conn_guard.connections.scopes import RequestScope

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("conn_guard.middleware")


def watch() -> None:
    """Give every connection that is opened from now on an owner. A second call changes nothing."""
    connection_created.connect(_own, dispatch_uid="conn_guard.connections")


def _own(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    """Receive ``connection_created``. It never raises: that would leave a half-made connection."""
    try:
        vars(connection)["conn_guard_pid"] = os.getpid()
        if closing.is_lent(connection):
            return
        scope = scopes.current.get()
        if scope is not None:
            scope.add(connection)
        closing.note_opened(connection)
        if not conf.current().close_with_owner:
            return
        loop = closing.running_loop()
        if loop is None:
            owner = _thread_owner()
            owner.wrappers.add(connection)
            # A thread that a view starts may end long before its request.
            if scope is not None and (
                scope.found_on == threading.get_ident() or _is_asgirefs_thread()
            ):
                owner.scope = scope
                owner.origin = owner.origin or "threads that serve requests"
            owner.origin = owner.origin or events.origin_of_thread(scopes.current_view())
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
    """Owns the connections that one thread opened. Only its ``threading.local`` holds it."""

    def __init__(self) -> None:
        self.wrappers: WeakSet[BaseDatabaseWrapper] = WeakSet()
        self.pid = os.getpid()
        self.scope: RequestScope | None = None
        self.origin = ""

    def __del__(
        self,
        getpid: Callable[[], int] = os.getpid,
        finalizing: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        # A forked child must not end its parent's sessions, and a process that ends takes its
        # sessions along.
        if getpid() != self.pid or finalizing():
            return
        ended = sum(closing.abandon(wrapper) for wrapper in list(self.wrappers))
        if self.scope is not None and not self.scope.finished:
            self.scope.tell_if_unfinished()
        elif ended:
            events.thread_left_open(ended, self.origin)


class _ContextOwner:
    """Owns a connection of an event loop's thread. Contexts that can see it hold the owner."""

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
    """Owns a connection that was opened after its request. The task that asked for it holds it.

    The connection is on a thread of asgiref's, which ends with the context of the request. Django
    before 6.1 often leaves that context in a reference cycle.
    """

    def __init__(self, wrapper: BaseDatabaseWrapper, loop: asyncio.AbstractEventLoop) -> None:
        self.wrapper = ref(wrapper)
        self.loop = ref(loop)
        self.pid = os.getpid()
        # In this context asgiref finds the same thread. The copy doesn't hold this owner yet.
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


def own_in_context(wrapper: BaseDatabaseWrapper, loop: asyncio.AbstractEventLoop) -> None:
    """Let this context, and its copies, own *wrapper*. A second call changes nothing.

    An engine calls it when it makes the wrapper, the receiver of ``connection_created`` when the
    connection is opened. From Python 3.12 on the end of the task counts as well: a context may be
    part of a reference cycle, and would then wait for the garbage collector.
    """
    if not _hold(_ContextOwner, wrapper, loop):
        return
    task = asyncio.current_task(loop)
    if task is not None and sys.version_info >= (3, 12):
        _close_after(task, wrapper)


def own_from_birth(wrapper: BaseDatabaseWrapper) -> None:
    """Let this context own *wrapper*, if an engine is making it on the thread of an event loop."""
    loop = closing.running_loop()
    if loop is not None and conf.current().close_with_owner:
        own_in_context(wrapper, loop)


def _own_after_request(wrapper: BaseDatabaseWrapper) -> None:
    """Let the task whose synchronous code opens *wrapper* own it. It gets this context back."""
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
    transaction is all that can be seen.
    """
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
    ) or context.run(closing.is_current, wrapper)


def _close_on_its_thread(wrapper_ref: ref[BaseDatabaseWrapper]) -> None:
    closing.run_unattended(sync_to_async(_close_here, thread_sensitive=True), wrapper_ref)


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
    if (
        wrapper is not None
        and wrapper.connection is not None
        and not in_transaction(wrapper)
        and not getattr(wrapper, "conn_guard_pins", 0)
    ):
        closing.abandon(wrapper)


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


def _abandon_outside_transaction(wrapper: BaseDatabaseWrapper) -> None:
    """Close *wrapper*, or leave it to the loop's thread where a task may be in a transaction."""
    if wrapper.connection is not None and in_transaction(wrapper):
        _thread_owner().wrappers.add(wrapper)
    else:
        closing.abandon(wrapper)


def open_here() -> set[BaseDatabaseWrapper]:
    """Return the connections that are open on this thread, copies included.

    On an event loop's thread these are the ones that this context sees. Synchronous code that
    opened a connection there, before the loop ran, closes it itself.
    """
    copies = _thread_owner().wrappers if closing.running_loop() is None else ()
    wrappers = {*connections.all(initialized_only=True), *copies}
    return {
        wrapper for wrapper in wrappers if closing.is_open(wrapper) and not closing.is_lent(wrapper)
    }
