"""The connections of one request: which it found, which it opened, and how they end."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING
from weakref import ref

from asgiref.sync import SyncToAsync, sync_to_async

from conn_guard.connections import closing, events
from conn_guard.connections.closing import in_transaction

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("conn_guard.middleware")


def has_own_thread() -> bool:
    """Return whether the synchronous code of this request has a thread that ends with it.

    Django's ASGI handler provides one, its test client doesn't.
    """
    return SyncToAsync.thread_sensitive_context.get(None) is not None


class RequestScope:
    """Holds the connections of one request: those that it found open, and those that it opened."""

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
    reason = "request"

    def __init__(
        self,
        *,
        view: Callable[[], str],
        keep_persistent: bool,
        close_found: bool = False,
        waits: bool = True,
    ) -> None:
        """Begin a request.

        *view* returns its name. *keep_persistent*: connections that CONN_MAX_AGE keeps stay open.
        *close_found*: connections that the request found open are closed as well. *waits*: the end
        may be awaited, since no client waits for it.
        """
        # Weak references: a copy that the request drops must not stay open. A list that only
        # grows may be read by one thread while another one adds to it.
        self.opened: list[tuple[ref[BaseDatabaseWrapper], int]] = []
        self.found: Collection[BaseDatabaseWrapper] = ()
        self.found_in_transaction: Collection[BaseDatabaseWrapper] = ()
        self.found_on = 0
        self.view = view
        self.keep_persistent = keep_persistent
        self.close_found = close_found
        self.waits = waits
        self.ended = False
        self.finished = False
        # A view may serve another request, as a test client does.
        outer = current.get()
        self.outer = None if outer is None or outer.ended else outer
        current.set(self)

    def add(self, wrapper: BaseDatabaseWrapper) -> None:
        """Note that the request opened *wrapper* on this thread."""
        here = threading.get_ident()
        if not any(each() is wrapper and ident == here for each, ident in self.opened):
            self.opened.append((ref(wrapper), here))

    def look(self) -> None:
        """Note the connections that are open on this thread before the request runs on it."""
        self.found_on = threading.get_ident()
        self.found = closing.open_on_this_thread()
        if self.found:
            self.found_in_transaction = [each for each in self.found if in_transaction(each)]

    def end(self) -> None:
        """Close what the request leaves open on this thread.

        A connection that was in a transaction before the request is left alone.
        """
        self.ended = True
        if not self.opened and not self.close_found:
            # Most requests open nothing and leave no transaction open.
            for wrapper in self.found:
                if wrapper.connection is not None and in_transaction(wrapper):
                    break
            else:
                return
        here = threading.get_ident()
        opened = [wrapper for wrapper, ident in self._opened() if ident == here]
        found = self.found if self.found_on == here else ()
        for wrapper in (*opened, *(each for each in found if each not in opened)):
            if not closing.is_open(wrapper) or wrapper in self.found_in_transaction:
                continue
            left_transaction = in_transaction(wrapper)
            is_kept = wrapper not in opened and not self.close_found
            # A wrapper that the application took out of Django's handler is its own.
            if is_kept and not (left_transaction and closing.is_current(wrapper)):
                continue
            if closing.is_lent(wrapper):
                continue
            if left_transaction and not closing.rolled_back_reading(wrapper):
                message = "%s left a transaction open on %r; it is rolled back with its connection."
                logger.warning(message, self.view(), wrapper.alias)
                closing.close(wrapper, self.reason)
            elif wrapper not in opened:
                if self.close_found:
                    closing.close(wrapper, self.reason)
            elif self.keep_persistent:
                closing.close_if_unusable_or_obsolete(wrapper)
            else:
                closing.close(wrapper, self.reason)

    async def aend(self) -> None:
        """End on the event loop's thread and on the thread of the request's synchronous code.

        The latter may still be busy, with work that the view left behind and that may never end.
        So no code waits for it unless this scope *waits*.
        """
        self.end()
        if self.is_open_elsewhere():
            if self.waits:
                await self._end_elsewhere()
            else:
                closing.run_unattended(self._end_elsewhere)

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
        if current.get() is self:
            current.set(self.outer)
        self.outer = None
        # A thread that lives on may hold this scope: it keeps no request and no connection alive.
        self.view = _over
        self.found = self.found_in_transaction = ()

    def tell_if_unfinished(self) -> None:
        """Log that the response was never closed. A finalizer calls this, and must not log."""
        if self.finished:
            return
        self.finished = True
        events.report("never_closed")
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


current: contextvars.ContextVar[RequestScope | None] = contextvars.ContextVar(
    "conn_guard_scope", default=None
)


def current_scope() -> RequestScope | None:
    """Return the request that is running here, or None outside of one."""
    scope = current.get()
    return None if scope is None or scope.finished else scope


def current_view() -> str:
    """Return the view of the request that is running here, or an empty string outside of one."""
    scope = current_scope()
    return "" if scope is None else scope.view()
