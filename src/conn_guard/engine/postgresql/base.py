"""Django's door to the engine: this room holds the DatabaseWrapper that Django looks for under this
name.
"""

from __future__ import annotations

from django.db.backends.postgresql import base

from conn_guard.engine.wrapper import Guarded


class DatabaseWrapper(Guarded, base.DatabaseWrapper):
    """Django's own wrapper for PostgreSQL, guarded."""
