"""The app's configuration: INSTALLED_APPS needs only ``conn_guard``."""

from __future__ import annotations

from django.apps import AppConfig


class ConnGuardConfig(AppConfig):
    """Registers the system checks and gives every new connection an owner."""

    name = "conn_guard"
    verbose_name = "conn_guard"

    def ready(self) -> None:
        """Register checks and connect receivers; never raises."""
        # Imported here: Django imports this module early, and it must not load the database layer.
        from conn_guard import checks
        from conn_guard.connections import ownership

        checks.register()
        checks.watch()
        ownership.watch()
