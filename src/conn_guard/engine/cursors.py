"""Django's cursors, which check before each statement that the session is still alive."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql.base import CursorDebugWrapper
from django.db.backends.utils import CursorWrapper

if TYPE_CHECKING:
    from conn_guard.engine.lease import Lease


class _CheckingCursor(CursorWrapper):
    """A cursor that checks its session before each statement and notes when it was used."""

    db: Any

    # The lease is read here and not passed in, because a debugging tool may build another cursor
    # of this class around the same driver cursor.
    def __init__(self, cursor: Any, db: Any) -> None:
        super().__init__(cursor, db)
        self.lease: Lease | None = db.lease

    # Not split into functions, because every query pays for each call.
    def execute(self, sql: Any, params: Any = None) -> Any:
        lease = self.lease
        if lease is None:
            return super().execute(sql, params)
        if self.db.errors_occurred or monotonic() - lease.used_at > lease.check_after_s:
            lease = self._check(lease)
        try:
            return super().execute(sql, params)
        finally:
            lease.used_at = monotonic()

    def executemany(self, sql: Any, param_list: Any) -> Any:
        lease = self._check_if_leased()
        try:
            return super().executemany(sql, param_list)
        finally:
            if lease is not None:
                lease.used_at = monotonic()

    def callproc(self, procname: Any, params: Any = None, kparams: Any = None) -> Any:
        self._check_if_leased()
        return super().callproc(procname, params, kparams)

    def _check_if_leased(self) -> Lease | None:
        return None if self.lease is None else self._check(self.lease)

    def _check(self, lease: Lease) -> Lease:
        """Move this cursor to a new session if its own has ended, and return the lease in use."""
        db = self.db
        with db.lock:
            if db.lease is lease:
                db.replace_if_ended()
            if not lease.replaced or getattr(self.cursor, "name", None):
                return lease
            db.ensure_connection()
            with db.wrap_database_errors:
                self.cursor = db.create_cursor()
            self.lease = db.lease
            if self.lease is None:
                return lease
            self.lease.track_cursor(self.cursor)
            return self.lease


class Cursor(_CheckingCursor):
    """Django's cursor with the check."""


class DebugCursor(_CheckingCursor, CursorDebugWrapper):
    """Django's cursor for DEBUG with the check."""


class _NotingCursor(_CheckingCursor):
    """A server-side cursor: the driver's cursor factory doesn't make it, nor show its statements.

    It has a class of its own, so that other cursors don't pay for the call.
    """

    def _execute(self, sql: Any, params: Any, *context: Any) -> Any:
        # Django calls this after the application's execute wrappers, which may change the text.
        if self.lease is not None:
            self.lease.note_statement(sql)
        return super()._execute(sql, params, *context)  # type: ignore[misc]


class ServerSideCursor(_NotingCursor):
    """Django's server-side cursor with the check."""


class DebugServerSideCursor(_NotingCursor, CursorDebugWrapper):
    """Django's server-side cursor for DEBUG with the check."""
