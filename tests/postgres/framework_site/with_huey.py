"""Huey's task."""

from django.conf import settings
from huey.contrib.djhuey import db_task, task

from tests.postgres.framework_site import outcomes

if settings.CURE == "line":
    import conn_guard.contrib.huey  # noqa: F401


@(db_task if settings.CURE == "own" else task)()
def perform(name: str, path: str) -> None:
    outcomes.perform(name, path)


def send(name: str, path: str) -> None:
    perform(name, path)
