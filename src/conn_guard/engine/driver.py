"""What psycopg 3 and psycopg2 can tell of a session without asking it: this room holds the
driver_connection, one class for each driver.

A look costs no round trip: it reads what has already arrived. A server that ends a session says so,
and that farewell waits in the socket until somebody reads it."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from conn_guard.engine.statements import KEPT_CHARACTERS, Leaves, remember

DriverError: type[Exception] = DatabaseWrapper.Database.Error

# Source: libpq's PGTransactionStatusType.
_IDLE = 0
_UNKNOWN = 4

# What the server reports without being asked, as far as a client can change it. Whether a session
# has other rights than its login role's, or another tenant's search_path, shows here.
# Source: PostgreSQL documentation, ParameterStatus; search_path from 18 on.
_REPORTED = (
    "is_superuser",
    "session_authorization",
    "search_path",
    "default_transaction_read_only",
    "application_name",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "standard_conforming_strings",
    "TimeZone",
)

_parents: list[object] = []
_readers: dict[int, Callable[[Any], None]] = {}


class _Read:
    """Mixed into a driver's class of cursors: shows each statement to whoever reads for the
    connection. Raw cursors and raw connections pass here as well.
    """

    connection: Any

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        # In one piece, because every query pays for it.
        if (
            type(query) is not str
            or len(query) > KEPT_CHARACTERS
            or remember(query) is not Leaves.NOTHING
        ):
            self._show(query)
        return super().execute(query, *args, **kwargs)  # type: ignore[misc]

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        self._show(query)
        return super().executemany(query, *args, **kwargs)  # type: ignore[misc]

    def _show(self, query: Any) -> None:
        reader = _readers.get(id(self.connection))
        if reader is not None:
            reader(query)


@functools.cache
def read(cursors: type) -> type:
    """Return *cursors*, a driver's class of cursors, as a class whose statements are read."""
    watched = type(cursors.__name__, (_Read, cursors), {})
    for name in ("stream", "copy") if is_psycopg3 else ("callproc", "copy_expert"):
        setattr(watched, name, _showing(watched, name))
    return watched


def _showing(watched: type, name: str) -> Callable[..., Any]:
    def method(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        self._show(f"SELECT {query}()" if name == "callproc" else query)
        return getattr(super(watched, self), name)(query, *args, **kwargs)

    return method


class DriverConnection:
    """One driver connection, as far as the engine looks at it."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.pool: Any = getattr(raw, "_pool", None)
        # In no transaction when last looked at: what the driver of a dead session can't say any
        # more.
        self.was_at_rest = True
        self.reported: list[str | None] = []
        self.registered: object = None
        self.has_other_settings = False
        self.shows_statements = False

    def show_statements_to(self, reader: Callable[[Any], None]) -> None:
        """Let *reader* have every statement from now on, before it runs, until :meth:`release`."""
        _readers[id(self.raw)] = reader

    def connected(self) -> None:
        """Note what a new connection is like."""
        self.reported = self._reported()
        self.registered = self._registered()
        # OPTIONS may have any cursor_factory.
        factory = self.raw.cursor_factory
        self.shows_statements = isinstance(factory, type) and issubclass(factory, _Read)

    def is_as_connected(self) -> bool:
        """Return whether server and driver report the settings that they reported after connect."""
        # A driver tells nothing of a closed connection: then the last answer before counts.
        with contextlib.suppress(DriverError):
            reported = self._reported()
            if any(reported):
                self.has_other_settings = reported != self.reported
        return not self.has_other_settings

    def has_own_adapters(self) -> bool:
        """Return whether types were registered on this connection after it was made."""
        return self._registered() != self.registered

    def _reported(self) -> list[str | None]:
        info = self.raw.info
        return [info.parameter_status(name) for name in _REPORTED]

    def _registered(self) -> object:
        raise NotImplementedError

    def is_dead(self) -> bool:
        """Return whether the driver knows already that the session has ended."""
        return bool(self.raw.closed)

    def ended_at_rest(self) -> bool:
        """Return whether the session has ended, and ended outside any transaction: then nothing is
        lost with it.
        """
        status = self._status()
        if status == _IDLE:
            self.was_at_rest = True
            return self._said_farewell()
        self.was_at_rest = self.was_at_rest and status == _UNKNOWN
        return self.was_at_rest

    def is_at_rest(self) -> bool:
        """Return whether the session is in no transaction, will be in none by itself, and runs no
        statement.
        """
        return self._status() == _IDLE and bool(self.raw.autocommit)

    def release(self) -> None:
        """Take back what was hung on the driver's connection, which a pool may hand to somebody
        else.
        """
        _readers.pop(id(self.raw), None)

    def give_back(self) -> None:
        """Close the connection, or return it to its pool."""
        self.release()
        with contextlib.suppress(Exception):
            if self.pool is not None:
                self.pool.putconn(self.raw)
            else:
                self.raw.close()

    def _status(self) -> int:
        raise NotImplementedError

    def _said_farewell(self) -> bool:
        """Return whether the server has ended this session, which was at rest; the driver knows of
        it then as well.
        """
        raise NotImplementedError


class _Psycopg3Connection(DriverConnection):
    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self.pgconn = raw.pgconn
        self.notices: deque[object] = deque(maxlen=1)
        raw.add_notice_handler(self.notices.append)

    def is_at_rest(self) -> bool:
        if not self.raw.lock.acquire(blocking=False):
            return False
        self.raw.lock.release()
        return super().is_at_rest()

    def release(self) -> None:
        super().release()
        with contextlib.suppress(ValueError):
            self.raw.remove_notice_handler(self.notices.append)

    def connected(self) -> None:
        # A map that others were made from copies what it changes: so the copy stays as it is.
        self.adapters = type(self.raw.adapters)(self.raw.adapters)
        super().connected()

    def has_own_adapters(self) -> bool:
        return _registered_in(self.adapters) != self._registered()

    def _registered(self) -> object:
        return _registered_in(self.raw.adapters)

    def _status(self) -> int:
        return self.pgconn.transaction_status  # type: ignore[no-any-return]

    def _said_farewell(self) -> bool:
        pgconn = self.pgconn
        self.notices.clear()
        try:
            pgconn.consume_input()
        except DriverError:
            return True
        # What was read here is not in the socket any more, so whoever waits there for a NOTIFY must
        # get it from us.
        while (notification := pgconn.notifies()) is not None:
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(notification)
        if not self.notices:
            return False
        self.is_as_connected()
        # Nothing but its farewell makes a server say anything else to a session at rest. The end of
        # the stream may come a moment later, and until then the driver, and a pool with it, would
        # take the session for a living one.
        pgconn.finish()
        return True


def _registered_in(adapters: Any) -> object:
    return adapters._dumpers, adapters._dumpers_by_oid, adapters._loaders, adapters.types._registry


class _Psycopg2Connection(DriverConnection):
    def _registered(self) -> object:
        return dict(self.raw.string_types), dict(self.raw.binary_types)

    def _status(self) -> int:
        return _UNKNOWN if self.raw.closed else self.raw.get_transaction_status()

    def _said_farewell(self) -> bool:
        raw = self.raw
        self.is_as_connected()
        notices = _last(raw.notices)
        try:
            raw.poll()
        except DriverError:
            return True
        if not raw.closed and _last(raw.notices) == notices:
            return False
        raw.close()
        return True


def _last(notices: Any) -> object:
    # An application may put something of its own there, of which no more is known than that it can
    # be appended to.
    return notices[-1:] if isinstance(notices, list) else None


def wrap(raw: Any) -> DriverConnection:
    """Return what looks at the driver connection *raw*."""
    return _Psycopg3Connection(raw) if is_psycopg3 else _Psycopg2Connection(raw)


def leave_to_parent(raw: Any) -> None:
    """In a forked child: detach *raw* from the parent's socket, and never close it, which would end
    the parent's session.
    """
    keep_for_parent(raw)
    with contextlib.suppress(Exception):
        socket = raw.fileno()
        # A child that kept the socket open would keep the session of a parent that was killed.
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, socket)
        os.close(nowhere)


def keep_for_parent(something: object) -> None:
    """In a forked child: never let go of *something*, whose end would be noticed by the parent."""
    _parents.append(something)
