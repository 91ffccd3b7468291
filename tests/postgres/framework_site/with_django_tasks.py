"""Django's own tasks, with the worker of django-tasks-db."""

from django.conf import settings
from django.db import connection
from django_tasks_db.models import DBTaskResult

from conn_guard import closing_connections
from tests.postgres.framework_site import outcomes

try:
    from django.tasks import task
except ImportError:  # Django before 6.0
    from django_tasks import task

cure = closing_connections if settings.CURE == "line" else lambda function: function


@task
@cure
def perform(name: str, path: str) -> None:
    outcomes.perform(name, path)


@task
@cure
async def aperform(name: str, path: str) -> None:
    await outcomes.aperform(name, path)


def prepare() -> None:
    """Make the table of django-tasks-db, without its migrations."""
    with connection.schema_editor() as editor:
        editor.create_model(DBTaskResult)


def send(name: str, path: str) -> None:
    (aperform if name == "coroutine" else perform).enqueue(name, path)
