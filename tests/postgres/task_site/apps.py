"""The app configuration that closes the connections of django-rq's jobs."""

from django.apps import AppConfig
from django.conf import settings


class TaskSiteConfig(AppConfig):
    name = "tests.postgres.task_site"

    def ready(self):
        if settings.GUARDED:
            import conn_guard.contrib.rq  # noqa: F401
