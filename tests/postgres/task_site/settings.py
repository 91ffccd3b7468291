"""The settings of the workers: persistent connections, under the name that the test counts."""

from tests.settings import *  # noqa: F403
from tests.settings import ADDRESS, env

INSTALLED_APPS = ["conn_guard", "django_rq", "tests.postgres.task_site.apps.TaskSiteConfig"]
MIDDLEWARE = ["conn_guard.middleware.ConnectionGuardMiddleware"]
DATABASES = {
    "default": {
        **ADDRESS,
        "CONN_MAX_AGE": None,
        "OPTIONS": {"application_name": env("APPLICATION_NAME", default="task_site")},
    },
}
GUARDED = env.bool("GUARDED", default=True)
REDIS_URL = env("REDIS_URL", default="redis://127.0.0.1:6379/0")
RQ_QUEUES = {env("QUEUE", default="default"): {"URL": REDIS_URL}}
