"""The driver's view of a session: a common interface to psycopg 3 and psycopg2 connections.

Checking a session costs no round trip: the check reads only bytes that have already arrived. A
server that ends a session sends a last message, which waits in the socket until it is read.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from conn_guard.engine import reading

DriverError: type[Exception] = DatabaseWrapper.Database.Error

# Source: libpq's PGTransactionStatusType.
_IDLE = 0
_UNKNOWN = 4

# The settings that the server reports unasked and that a client can change. They show whether a
# session has rights beyond its login role's, or another tenant's search_path.
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

_kept_for_parent: list[object] = []


class DriverConnection:
    """One driver connection, *raw*, and the facts that the engine needs of its session."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.pool: Any = getattr(raw, "_pool", None)
        # Kept from the last check, because the driver of a dead session can't tell it any more.
        self.was_outside_transaction = True
        self.reported: list[str | None] = []
        self.registered: object = None
        self.autocommit: object = None
        self.modes: object = None
        self.settings_changed = False
        # None if OPTIONS named a cursor_factory whose statements can't be read.
        self.read_connection = reading.connection_of_cursors(raw)

    def show_statements_to(self, reader: Callable[[Any], None]) -> None:
        """Call *reader* with every statement before it runs, until :meth:`detach`."""
        if self.shows_statements:
            reading.start_reading(self.read_connection, reader)

    def note_connected(self) -> None:
        """Record the settings and types of a new connection, for later comparison."""
        self.reported = self._reported()
        self.autocommit = self.raw.autocommit
        self.modes = self._modes()
        self.note_types()

    def reported_at_connect(self) -> dict[str, str | None]:
        """Return the settings that the server reported of the new connection."""
        return dict(zip(_REPORTED, self.reported, strict=True))

    def note_types(self) -> None:
        """Record the registered types, for later comparison."""
        self.registered = self._registered()

    @property
    def shows_statements(self) -> bool:
        """Whether the engine sees the statements of this connection."""
        return self.read_connection is not None

    def has_settings_as_connected(self) -> bool:
        """Return whether the driver reports the same settings as after connect."""
        # The driver reports nothing for a closed connection; then the last answer counts.
        with contextlib.suppress(DriverError):
            reported = self._reported()
            if any(reported):
                self.settings_changed = reported != self.reported
        return not self.settings_changed

    def has_own_adapters(self) -> bool:
        """Return whether types were registered on this connection after it was made."""
        return self._registered() != self.registered

    def was_set_up(self) -> bool:
        """Return whether the driver was told types or modes of transactions after connect."""
        return (
            self.has_own_adapters()
            or self.raw.autocommit != self.autocommit
            or self._modes() != self.modes
        )

    def _modes(self) -> object:
        raw = self.raw
        read_only = raw.read_only if is_psycopg3 else raw.readonly
        return raw.isolation_level, read_only, raw.deferrable

    def _reported(self) -> list[str | None]:
        info = self.raw.info
        return [info.parameter_status(name) for name in _REPORTED]

    def _registered(self) -> object:
        raise NotImplementedError

    def is_closed(self) -> bool:
        """Return whether the driver already knows that the session has ended."""
        return bool(self.raw.closed)

    def ended_outside_transaction(self) -> bool:
        """Return whether the session has ended and no transaction was lost with it."""
        status = self._status()
        if status == _IDLE:
            self.was_outside_transaction = True
            return self._has_ended()
        self.was_outside_transaction = self.was_outside_transaction and status == _UNKNOWN
        return self.was_outside_transaction

    def is_idle(self) -> bool:
        """Return whether the session is in autocommit, outside transactions and runs nothing."""
        return self._status() == _IDLE and bool(self.raw.autocommit)

    def detach(self) -> None:
        """Remove the engine's reader and handlers from the driver connection.

        A pool may hand the connection to another wrapper.
        """
        if self.shows_statements:
            reading.stop_reading(self.read_connection)

    def give_back(self) -> None:
        """Close the connection, or return it to its pool."""
        self.detach()
        with contextlib.suppress(Exception):
            if self.pool is not None:
                self.pool.putconn(self.raw)
            else:
                self.raw.close()

    def _status(self) -> int:
        raise NotImplementedError

    def _has_ended(self) -> bool:
        """Return whether the server has ended this idle session; then close the driver's end."""
        raise NotImplementedError


class _Psycopg3Connection(DriverConnection):
    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self.pgconn = raw.pgconn
        self.notices: deque[object] = deque(maxlen=1)
        raw.add_notice_handler(self.notices.append)
        if self.shows_statements:
            # With psycopg2 the other factory makes named cursors as well.
            raw.server_cursor_factory = reading.reading_class(raw.server_cursor_factory)

    def is_idle(self) -> bool:
        if not self.raw.lock.acquire(blocking=False):
            return False
        self.raw.lock.release()
        return super().is_idle()

    def detach(self) -> None:
        super().detach()
        with contextlib.suppress(ValueError):
            self.raw.remove_notice_handler(self.notices.append)

    def note_types(self) -> None:
        # Adapters maps are copied on write, so this copy doesn't follow later registrations.
        self.adapters = type(self.raw.adapters)(self.raw.adapters)

    def has_own_adapters(self) -> bool:
        return _registered_in(self.adapters) != self._registered()

    def _registered(self) -> object:
        return _registered_in(self.raw.adapters)

    def _status(self) -> int:
        return self.pgconn.transaction_status  # type: ignore[no-any-return]

    def _has_ended(self) -> bool:
        pgconn = self.pgconn
        self.notices.clear()
        try:
            pgconn.consume_input()
        except DriverError:
            return True
        # Notifications read here are no longer in the socket, so they are passed on; code that
        # waits for a NOTIFY would miss them otherwise.
        while (notification := pgconn.notifies()) is not None:
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(notification)
        if not self.notices:
            return False
        self.has_settings_as_connected()
        # An idle session gets no notice but the one that ends it. The end of the stream may arrive
        # a moment later; until then the driver, and a pool, would treat the session as alive.
        pgconn.finish()
        return True


def _registered_in(adapters: Any) -> object:
    return adapters._dumpers, adapters._dumpers_by_oid, adapters._loaders, adapters.types._registry


class _Psycopg2Connection(DriverConnection):
    def _registered(self) -> object:
        return dict(self.raw.string_types), dict(self.raw.binary_types)

    def _status(self) -> int:
        return _UNKNOWN if self.raw.closed else self.raw.get_transaction_status()

    def _has_ended(self) -> bool:
        raw = self.raw
        self.has_settings_as_connected()
        last = _last_notice(raw.notices)
        try:
            raw.poll()
        except DriverError:
            return True
        if not raw.closed and _last_notice(raw.notices) == last:
            return False
        raw.close()
        return True


def _last_notice(notices: Any) -> object:
    # An application may replace the list by any object that has append().
    return notices[-1:] if isinstance(notices, list) else None


def wrap(raw: Any) -> DriverConnection:
    """Return the DriverConnection for the driver connection *raw*."""
    return _Psycopg3Connection(raw) if is_psycopg3 else _Psycopg2Connection(raw)


def leave_to_parent(raw: Any) -> None:
    """In a forked child: detach *raw* from the parent's socket without closing its session."""
    keep_for_parent(raw)
    with contextlib.suppress(Exception):
        socket = raw.fileno()
        # The child's copy of the socket would keep the session of a killed parent open.
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, socket)
        os.close(nowhere)


def keep_for_parent(kept: object) -> None:
    """In a forked child: never release *kept*, because its finalizer would reach the parent."""
    _kept_for_parent.append(kept)
