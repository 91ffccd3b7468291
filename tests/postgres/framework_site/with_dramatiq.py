"""Dramatiq's actors; ``dramatiq`` loads this module."""

import django
import dramatiq
from django.db import connection

django.setup()

from django_dramatiq.models import Task  # noqa: E402

from tests.postgres.framework_site import outcomes  # noqa: E402


@dramatiq.actor(max_retries=0)
def perform(name: str, path: str) -> None:
    outcomes.perform(name, path)


@dramatiq.actor(max_retries=0)
async def aperform(name: str, path: str) -> None:
    await outcomes.aperform(name, path)


def prepare() -> None:
    """Make the table of django-dramatiq, without its migrations."""
    with connection.schema_editor() as editor:
        editor.create_model(Task)


def send(name: str, path: str) -> None:
    (aperform if name == "coroutine" else perform).send(name, path)
