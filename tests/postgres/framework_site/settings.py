"""The settings of every framework's worker; the environment names the framework and the cure."""

from tests.settings import *  # noqa: F403
from tests.settings import ADDRESS, env

FRAMEWORK = env("FRAMEWORK", default="")
# "alone", "app", "own" (the framework's own cure) or "line" (the app and our one line).
CURE = env("CURE", default="line")
NAMESPACE = env("NAMESPACE", default="default")

APPS = {
    "huey": ["huey.contrib.djhuey"],
    "dramatiq": ["django_dramatiq"],
    "procrastinate": ["procrastinate.contrib.django"],
    "django_tasks": ["django_tasks_db"],
    "django_tasks_rq": ["django_tasks", "django_rq"],
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
    "consumer": {
        "worker_type": env("HUEY_WORKER_TYPE", default="thread"),
        "initial_delay": 0.05,
        "max_delay": 0.05,
    },
}
DRAMATIQ_MIDDLEWARE = {
    # What django-dramatiq does by default, in its order.
    "own": [
        "django_dramatiq.middleware.AdminMiddleware",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
    ],
    "line": ["django_dramatiq.middleware.AdminMiddleware"],
}
DRAMATIQ_BROKER = {
    "BROKER": "dramatiq.brokers.redis.RedisBroker",
    "OPTIONS": {"url": env("REDIS_URL", default=""), "namespace": NAMESPACE},
    "MIDDLEWARE": [
        *(["conn_guard.contrib.dramatiq.ConnectionGuardMiddleware"] if CURE == "line" else []),
        "dramatiq.middleware.AsyncIO",
        "dramatiq.middleware.TimeLimit",
        "dramatiq.middleware.Retries",
        *DRAMATIQ_MIDDLEWARE.get(CURE, []),
    ],
}
PROCRASTINATE_DATABASE_ALIAS = "queue"
BACKENDS = {
    "django_tasks": {"BACKEND": "django_tasks_db.DatabaseBackend"},
    "django_tasks_rq": {"BACKEND": "django_tasks_rq.RQBackend", "QUEUES": [NAMESPACE]},
}
if FRAMEWORK in BACKENDS:
    TASKS = {"default": BACKENDS[FRAMEWORK]}
RQ_QUEUES = {NAMESPACE: {"URL": env("REDIS_URL", default="")}}
