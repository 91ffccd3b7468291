"""What psycopg 3 and psycopg2 can tell of a session without asking it: this room holds the wire,
one class for each driver.

A look costs no round trip: it reads what has already arrived. A server that ends a session says so,
and that farewell waits in the socket until somebody reads it."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Any

from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3

DriverError: type[Exception] = DatabaseWrapper.Database.Error

# Source: libpq's PGTransactionStatusType.
_IDLE = 0
_UNKNOWN = 4

_parents: list[object] = []


class Wire:
    """One driver connection, as far as the engine looks at it."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.pool: Any = getattr(raw, "_pool", None)
        # In no transaction when last looked at: what the driver of a dead session can't say any
        # more.
        self.was_at_rest = True

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


class _Psycopg3Wire(Wire):
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
        with contextlib.suppress(ValueError):
            self.raw.remove_notice_handler(self.notices.append)

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
        # Nothing but its farewell makes a server say anything else to a session at rest. The end of
        # the stream may come a moment later, and until then the driver, and a pool with it, would
        # take the session for a living one.
        pgconn.finish()
        return True


class _Psycopg2Wire(Wire):
    def _status(self) -> int:
        return _UNKNOWN if self.raw.closed else self.raw.get_transaction_status()

    def _said_farewell(self) -> bool:
        raw = self.raw
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


def wire(raw: Any) -> Wire:
    """Return what looks at the driver connection *raw*."""
    return _Psycopg3Wire(raw) if is_psycopg3 else _Psycopg2Wire(raw)


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
