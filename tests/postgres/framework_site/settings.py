"""The settings of every framework's worker; the environment names the framework and the cure."""

from tests.settings import *  # noqa: F403
from tests.settings import ADDRESS, env

FRAMEWORK = env("FRAMEWORK", default="")
# "alone", "app", "own" (the framework's own cure) or "line" (the app and our one line).
CURE = env("CURE", default="line")

APPS = {
    "huey": ["huey.contrib.djhuey"],
    "procrastinate": ["procrastinate.contrib.django"],
    "django_tasks": ["django_tasks_db"],
}
INSTALLED_APPS = [
    *(["conn_guard"] if CURE in ("app", "line") else []),
    *APPS.get(FRAMEWORK, []),
    "tests.postgres.framework_site",
]
MIDDLEWARE: list[str] = []
_address = {**ADDRESS, "NAME": env("DATABASE_NAME", default=ADDRESS["NAME"])}
DATABASES = {
    "default": {
        **_address,
        "CONN_MAX_AGE": None if env("CONN_MAX_AGE", default="0") == "None" else 0,
        "OPTIONS": {"application_name": env("APPLICATION_NAME", default="framework_site")},
    },
    # Procrastinate's worker opens sessions of its own with these settings.
    "queue": {**_address, "OPTIONS": {"application_name": "framework_site_queue"}},
}
HUEY = {
    "huey_class": "huey.SqliteHuey",
    "name": "framework_site",
    "filename": env("FOLDER", default="/tmp") + "/huey.db",
    "immediate": False,
    "consumer": {"initial_delay": 0.05, "max_delay": 0.05},
}
PROCRASTINATE_DATABASE_ALIAS = "queue"
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
