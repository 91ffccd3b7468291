"""The DatabaseWrapper for PostGIS; Django looks for it under this module and class name."""

from __future__ import annotations

from django.contrib.gis.db.backends.postgis import base

from conn_guard.engine.wrapper import GuardedWrapper


class DatabaseWrapper(GuardedWrapper, base.DatabaseWrapper):
    """Django's wrapper for PostGIS with conn_guard's behaviour mixed in."""
