"""Django's own tasks, with the worker of django-tasks-rq."""

from django.conf import settings
from django_tasks import task

from tests.postgres.framework_site import outcomes

if settings.CURE == "line":
    import conn_guard.contrib.rq  # noqa: F401


@task(queue_name=settings.NAMESPACE)
def perform(name: str, path: str) -> None:
    outcomes.perform(name, path)


@task(queue_name=settings.NAMESPACE)
async def aperform(name: str, path: str) -> None:
    await outcomes.aperform(name, path)


def send(name: str, path: str) -> None:
    (aperform if name == "coroutine" else perform).enqueue(name, path)
