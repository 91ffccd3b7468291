"""Dramatiq's actors; ``dramatiq`` loads this module."""

import django
import dramatiq
from django.apps import apps
from django.db import connection

from tests.postgres.framework_site import outcomes

# An actor needs the broker, which django-dramatiq makes.
django.setup()


@dramatiq.actor(max_retries=0)
def perform(name: str, path: str) -> None:
    outcomes.perform(name, path)


@dramatiq.actor(max_retries=0)
async def aperform(name: str, path: str) -> None:
    await outcomes.aperform(name, path)


def prepare() -> None:
    """Make the table of django-dramatiq, without its migrations."""
    with connection.schema_editor() as editor:
        editor.create_model(apps.get_model("django_dramatiq", "Task"))


def send(name: str, path: str) -> None:
    (aperform if name == "coroutine" else perform).send(name, path)
