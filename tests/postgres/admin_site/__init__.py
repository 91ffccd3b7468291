"""A project with the admin page, once on Django's own site and once on a site of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.apps import apps
from django.db import connection
from django.test import override_settings

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.admin",
    "conn_guard",
    "conn_guard.contrib.admin",
]
MIDDLEWARE = [
    "conn_guard.middleware.ConnectionGuardMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "tests.postgres.admin_site.policy",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
SETTINGS = {
    "INSTALLED_APPS": INSTALLED_APPS,
    "MIDDLEWARE": MIDDLEWARE,
    "TEMPLATES": TEMPLATES,
    "ROOT_URLCONF": "tests.postgres.admin_site.urls",
    "STATIC_URL": "/static/",
    "CONN_GUARD": {"REAP_IDLE_FOR": 0.1},
}


def policy(get_response):
    """Forbid what a strict project forbids: scripts and styles within a page."""

    def middleware(request):
        response = get_response(request)
        response["Content-Security-Policy"] = (
            "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'"
        )
        return response

    return middleware


@contextmanager
def admin_project() -> Iterator[None]:
    """Let the project's settings hold, and its log have a table."""
    with override_settings(**SETTINGS):
        log = apps.get_model("admin", "LogEntry")
        with connection.schema_editor() as editor:
            editor.create_model(log)
        try:
            yield
        finally:
            with connection.schema_editor() as editor:
                editor.delete_model(log)
