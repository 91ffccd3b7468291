"""What runs on a connection: this room holds cursors whose statements the engine sees, and which
look before each of them.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql.base import CursorDebugWrapper
from django.db.backends.utils import CursorWrapper

from conn_guard.engine.statements import KEPT_CHARACTERS, Leaves, remember

if TYPE_CHECKING:
    from conn_guard.engine.tenure import Tenure
    from conn_guard.engine.wrapper import Guarded


class _Watched(CursorWrapper):
    """A cursor whose statements the engine sees, and which looks before each of them."""

    db: Guarded

    tenure: Tenure | None = None

    # In one piece, because every query pays for it.
    def execute(self, sql: Any, params: Any = None) -> Any:
        tenure = self.tenure
        if tenure is None:
            return super().execute(sql, params)
        if self.db.errors_occurred or monotonic() - tenure.used_at > tenure.brisk_s:
            tenure = self._look_again(tenure)
        if (
            type(sql) is not str
            or len(sql) > KEPT_CHARACTERS
            or remember(sql) is not Leaves.NOTHING
        ):
            tenure.runs(sql)
        try:
            return super().execute(sql, params)
        finally:
            tenure.used_at = monotonic()

    def executemany(self, sql: Any, param_list: Any) -> Any:
        tenure = self._about_to_run(sql)
        try:
            return super().executemany(sql, param_list)
        finally:
            if tenure is not None:
                tenure.used_at = monotonic()

    def callproc(self, procname: Any, params: Any = None, kparams: Any = None) -> Any:
        self._about_to_run(f"{procname}(")
        return super().callproc(procname, params, kparams)

    def _about_to_run(self, sql: Any) -> Tenure | None:
        tenure = self.tenure
        if tenure is not None:
            tenure = self._look_again(tenure)
            tenure.runs(sql)
        return tenure

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
