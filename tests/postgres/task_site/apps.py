"""This room holds what a project of django-rq writes to have its jobs' connections closed."""

from django.apps import AppConfig
from django.conf import settings


class TaskSiteConfig(AppConfig):
    name = "tests.postgres.task_site"

    def ready(self):
        if settings.GUARDED:
            import conn_guard.contrib.rq  # noqa: F401
