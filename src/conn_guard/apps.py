"""Django's door: this room holds what installing the app sets up."""

from __future__ import annotations

from django.apps import AppConfig


class ConnGuardConfig(AppConfig):
    """Registers the system checks and gives every connection an owner."""

    name = "conn_guard"
    verbose_name = "conn_guard"

    def ready(self) -> None:
        """Connect receivers and register checks; it never raises."""
        # Imported here, because importing this module must not load Django's database layer.
        from conn_guard import checks
        from conn_guard.connections import ownership

        checks.register()
        checks.watch()
        ownership.watch()
