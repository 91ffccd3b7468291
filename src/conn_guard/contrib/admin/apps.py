"""The AppConfig of the admin page."""

from __future__ import annotations

from django.apps import AppConfig


class SessionsConfig(AppConfig):
    """The app of the page "Sessions"; its label is part of the permissions' names."""

    name = "conn_guard.contrib.admin"
    label = "conn_guard_admin"
    verbose_name = "PostgreSQL"
