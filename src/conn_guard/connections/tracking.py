"""Follows each driver connection from its opening to its end, once a metric asks for it.

Django sends a signal for an opened connection, and none for a closed one. So the receiver of
``connection_created`` puts a hook before the wrapper's own ``_close()``, and a weak reference to
the driver connection tells of its end without a close. Finalizers run some of this: it takes no
lock.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from django.db.backends.signals import connection_created

from conn_guard.connections import events

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("conn_guard.middleware")


class _Entry:
    """A driver connection that is open."""

    __slots__ = ("alias", "is_pooled", "pid", "reference", "taken_at")

    def __init__(self, alias: str, *, is_pooled: bool) -> None:
        self.alias = alias
        self.is_pooled = is_pooled
        self.pid = os.getpid()
        # On the monotonic clock; None while the connection rests in its pool.
        self.taken_at: float | None = None
        self.reference: object = None

    def note_returned(self) -> None:
        if self.taken_at is not None:
            events.report("used", self.alias, seconds=time.monotonic() - self.taken_at)
            self.taken_at = None


# By id(), since the driver connections of psycopg2 take no attributes. The weak reference of an
# entry removes it before its id can belong to another object.
_entries: dict[int, _Entry] = {}
_pools: dict[str, ref[Any]] = {}


def start(listener: Callable[[events.Event], None] | None = None) -> None:
    """Follow and count every connection that is opened from now on.

    *listener* is called with each event, on a thread of :mod:`~conn_guard.connections.events`. A
    second call with the same listener changes nothing.
    """
    events.count(listener)
    connection_created.connect(_note_opened, dispatch_uid="conn_guard.tracking")


def in_use() -> Counter[str]:
    """Return how many connections of each alias the wrappers of this process have."""
    pid = os.getpid()
    entries = list(_entries.values())
    return Counter(each.alias for each in entries if each.pid == pid and each.taken_at is not None)


def pools() -> dict[str, Any]:
    """Return the pool of each alias that has handed out a connection in this process."""
    found = {alias: reference() for alias, reference in list(_pools.items())}
    return {alias: pool for alias, pool in found.items() if pool is not None}


def note_ended(raw: object, reason: str) -> None:
    """Note that a wrapper closed *raw*, its driver connection, or returned it to its pool."""
    entry = _entries.get(id(raw))
    if entry is None or entry.pid != os.getpid():
        return
    entry.note_returned()
    if not entry.is_pooled and _entries.pop(id(raw), None) is not None:
        events.report("closed", entry.alias, reason)


def _note_opened(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    """Receive ``connection_created``. It never raises: that would leave a half-made connection."""
    try:
        raw = connection.connection
        pool = getattr(raw, "_pool", None)
        if not hasattr(pool, "get_stats"):  # not psycopg's: the alias has no pool for Django
            pool = None
        _entry(raw, connection, pool).taken_at = time.monotonic()
        if pool is not None:
            _pools[connection.alias] = ref(pool)
            # Those that the pool opened in advance are open as well.
            for spare in list(pool._pool):
                _entry(spare, connection, pool)
        variables = vars(connection)
        variables.pop("conn_guard_reason", None)
        if not isinstance(variables.get("_close"), _Close):
            variables["_close"] = _Close(connection)
    except Exception:
        logger.exception("The connection %r is not counted.", connection.alias)


def _entry(raw: Any, wrapper: BaseDatabaseWrapper, pool: object) -> _Entry:
    """Return the entry of *raw*; a new one counts as opened."""
    key = id(raw)
    entry = _entries.get(key)
    if entry is None or entry.pid != os.getpid():
        entry = _Entry(wrapper.alias, is_pooled=pool is not None)
        gone = functools.partial(_note_gone, key)
        try:
            entry.reference = ref(raw, gone)
        except TypeError:  # a connection of SQLite takes no weak reference
            entry.reference = ref(wrapper, gone)
        _entries[key] = entry
        events.report("opened", wrapper.alias)
    return entry


def _note_gone(key: int, _: object) -> None:
    """Note the end of a driver connection that no wrapper closed."""
    entry = _entries.pop(key, None)
    if entry is None or entry.pid != os.getpid():
        return
    # A pool closes what rests in it.
    reason = "django" if entry.taken_at is None else "dropped"
    entry.note_returned()
    events.report("closed", entry.alias, reason)


def _forget() -> None:
    """In a forked child: forget the connections of the parent."""
    _entries.clear()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class _Close:
    """The ``_close()`` of one wrapper, which notes the end of its connection."""

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        # Weak: a cycle would leave the wrapper to the garbage collector.
        self.wrapper = ref(wrapper)
        self.own = vars(wrapper).get("_close")

    def __call__(self) -> Any:
        wrapper: Any = self.wrapper()
        raw = wrapper.connection
        try:
            return type(wrapper)._close(wrapper) if self.own is None else self.own()
        finally:
            note_ended(raw, vars(wrapper).pop("conn_guard_reason", "django"))
