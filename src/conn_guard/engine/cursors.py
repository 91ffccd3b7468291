"""What runs on a connection: this room holds cursors whose statements the engine sees, and which
look before each of them.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql.base import CursorDebugWrapper
from django.db.backends.utils import CursorWrapper

if TYPE_CHECKING:
    from conn_guard.engine.lease import Lease


class _Watched(CursorWrapper):
    """A cursor whose statements the engine sees, and which looks before each of them."""

    db: Any

    # Here, because a debugging tool may make one more of the same class around the same cursor.
    def __init__(self, cursor: Any, db: Any) -> None:
        super().__init__(cursor, db)
        self.lease: Lease | None = db.lease

    # In one piece, because every query pays for it.
    def execute(self, sql: Any, params: Any = None) -> Any:
        lease = self.lease
        if lease is None:
            return super().execute(sql, params)
        if self.db.errors_occurred or monotonic() - lease.used_at > lease.brisk_s:
            lease = self._look_again(lease)
        try:
            return super().execute(sql, params)
        finally:
            lease.used_at = monotonic()

    def executemany(self, sql: Any, param_list: Any) -> Any:
        lease = self._about_to_run()
        try:
            return super().executemany(sql, param_list)
        finally:
            if lease is not None:
                lease.used_at = monotonic()

    def callproc(self, procname: Any, params: Any = None, kparams: Any = None) -> Any:
        self._about_to_run()
        return super().callproc(procname, params, kparams)

    def _execute(self, sql: Any, params: Any, *context: Any) -> Any:
        # After the application's wrappers, which may change the text. Django's own server-side
        # cursors are no cursors of the driver's factory, which shows the statements of all others.
        if self.lease is not None and getattr(self.cursor, "name", None):
            self.lease.runs(sql)
        return super()._execute(sql, params, *context)  # type: ignore[misc]

    def _about_to_run(self) -> Lease | None:
        return None if self.lease is None else self._look_again(self.lease)

    def _look_again(self, lease: Lease) -> Lease:
        """Move to the session that took the place of an ended one, so that a cursor may rest
        between two statements.
        """
        db = self.db
        with db.guard:
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
            self.lease.opened(self.cursor)
            return self.lease


class Cursor(_Watched):
    """Django's own cursor, watched."""


class DebugCursor(_Watched, CursorDebugWrapper):
    """Django's own cursor for DEBUG, watched."""
