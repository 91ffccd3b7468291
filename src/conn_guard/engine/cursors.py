"""What runs on a connection: this room holds cursors whose statements the engine sees, and which
look before each of them.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql.base import CursorDebugWrapper
from django.db.backends.utils import CursorWrapper

if TYPE_CHECKING:
    from conn_guard.engine.tenure import Tenure
    from conn_guard.engine.wrapper import Guarded


class _Watched(CursorWrapper):
    """A cursor whose statements the engine sees, and which looks before each of them."""

    db: Guarded

    # Here, because a debugging tool may make one more of the same class around the same cursor.
    def __init__(self, cursor: Any, db: Guarded) -> None:
        super().__init__(cursor, db)
        self.tenure: Tenure | None = db.tenure

    # In one piece, because every query pays for it.
    def execute(self, sql: Any, params: Any = None) -> Any:
        tenure = self.tenure
        if tenure is None:
            return super().execute(sql, params)
        if self.db.errors_occurred or monotonic() - tenure.used_at > tenure.brisk_s:
            tenure = self._look_again(tenure)
        try:
            return super().execute(sql, params)
        finally:
            tenure.used_at = monotonic()

    def executemany(self, sql: Any, param_list: Any) -> Any:
        tenure = self._about_to_run()
        try:
            return super().executemany(sql, param_list)
        finally:
            if tenure is not None:
                tenure.used_at = monotonic()

    def callproc(self, procname: Any, params: Any = None, kparams: Any = None) -> Any:
        self._about_to_run()
        return super().callproc(procname, params, kparams)

    def _execute(self, sql: Any, params: Any, *context: Any) -> Any:
        # After the application's wrappers, which may change the text. Django's own server-side
        # cursors are no cursors of the driver's factory, which shows the statements of all others.
        if self.tenure is not None and getattr(self.cursor, "name", None):
            self.tenure.runs(sql)
        return super()._execute(sql, params, *context)  # type: ignore[misc]

    def _about_to_run(self) -> Tenure | None:
        return None if self.tenure is None else self._look_again(self.tenure)

    def _look_again(self, tenure: Tenure) -> Tenure:
        """Move to the session that took the place of an ended one, so that a cursor may rest
        between two statements.
        """
        db = self.db
        with db.guard:
            if db.tenure is tenure:
                db.replace_if_ended()
            if not tenure.replaced or getattr(self.cursor, "name", None):
                return tenure
            db.ensure_connection()
            with db.wrap_database_errors:
                self.cursor = db.create_cursor()
            self.tenure = db.tenure
            if self.tenure is None:
                return tenure
            self.tenure.opened(self.cursor)
            return self.tenure


class Cursor(_Watched):
    """Django's own cursor, watched."""


class DebugCursor(_Watched, CursorDebugWrapper):
    """Django's own cursor for DEBUG, watched."""
