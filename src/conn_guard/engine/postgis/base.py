"""The DatabaseWrapper for PostGIS; Django looks for it under this module and class name."""

from __future__ import annotations

from typing import Any

from django.contrib.gis.db.backends.postgis import base

from conn_guard.engine import driver
from conn_guard.engine.wrapper import GuardedWrapper


class DatabaseWrapper(GuardedWrapper, base.DatabaseWrapper):
    """Django's wrapper for PostGIS with conn_guard's behaviour mixed in."""

    def register_geometry_adapters(
        self,
        pg_connection: Any,
        clear_caches: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Register the types of PostGIS; Django calls this at connect and after CREATE EXTENSION.

        Raises the driver's errors. Django has this method with psycopg 3 alone.
        """
        lease = self.lease
        if lease is None:
            self._register_at_connect(pg_connection, clear_caches)
            return
        connection = lease.driver_connection
        app_has_types = lease.is_connected and connection.has_own_adapters()
        super().register_geometry_adapters(pg_connection, clear_caches)
        # A new connection gets these types too, so they don't forbid to replace this one.
        if lease.is_connected and not app_has_types:
            connection.note_types()

    def _register_at_connect(self, raw: Any, clear_caches: bool) -> None:  # noqa: FBT001
        # Django asks the session for its types, once in each process. If a pool handed out an ended
        # session, GuardedWrapper.get_new_connection() gives it back and takes the next.
        driver_connection = driver.wrap(raw)
        try:
            if not driver_connection.ended_outside_transaction():
                super().register_geometry_adapters(raw, clear_caches)
        except BaseException:
            # Nothing else gives the connection back to its pool.
            driver_connection.give_back()
            raise
        driver_connection.detach()
