"""A site for servers that the tests start: its settings, its view and its applications."""

from __future__ import annotations

import json
import os

import environ

SECRET_KEY = "only for tests"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["conn_guard"]
MIDDLEWARE = ["conn_guard.middleware.ConnectionGuardMiddleware"]
ROOT_URLCONF = __name__
WSGI_APPLICATION = f"{__name__}.wsgi"
DATABASES = {"default": environ.Env().db_url("DATABASE_URL")}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "conn_guard.checks": {"handlers": ["stderr"], "level": "DEBUG", "propagate": False}
    },
}

# The settings that a test changes.
_changes = json.loads(os.environ.get("CHECKS_SITE", "{}"))
DATABASES["default"].update(_changes.pop("DEFAULT", {}))
globals().update(_changes)


def query(request):
    from django.db import connection
    from django.http import HttpResponse

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return HttpResponse(str(cursor.fetchone()[0]))


def __getattr__(name):
    # A handler is made when a server asks for its application, not when Django reads the settings.
    if name == "urlpatterns":
        from django.urls import path

        return [path("", query)]
    if name == "wsgi":
        from django.core.wsgi import get_wsgi_application

        return get_wsgi_application()
    if name == "asgi":
        from django.core.asgi import get_asgi_application

        return get_asgi_application()
    raise AttributeError(name)
