"""The app configuration that loads the tasks of a framework whose worker is a command of Django."""

from importlib import import_module

from django.apps import AppConfig
from django.conf import settings


class FrameworkSiteConfig(AppConfig):
    name = "tests.postgres.framework_site"

    def ready(self):
        if settings.FRAMEWORK in ("huey", "procrastinate", "django_tasks_rq"):
            import_module(f"{self.name}.with_{settings.FRAMEWORK}")
