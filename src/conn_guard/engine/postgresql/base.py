"""The DatabaseWrapper for PostgreSQL; Django looks for it under this module and class name."""

from __future__ import annotations

from django.db.backends.postgresql import base

from conn_guard.engine.wrapper import GuardedWrapper


class DatabaseWrapper(GuardedWrapper, base.DatabaseWrapper):
    """Django's wrapper for PostgreSQL with conn_guard's behaviour mixed in."""
