"""Procrastinate's tasks."""

from django.conf import settings
from django.db import connections
from procrastinate.contrib.django import app
from procrastinate.schema import SchemaManager

from conn_guard import closing_connections
from tests.postgres.framework_site import outcomes

cure = closing_connections if settings.CURE == "line" else lambda function: function


@app.task
@cure
def perform(name: str, path: str) -> None:
    outcomes.perform(name, path)


@app.task
@cure
async def aperform(name: str, path: str) -> None:
    await outcomes.aperform(name, path)


def prepare() -> None:
    """Make Procrastinate's tables, without its dozens of migrations."""
    with connections["queue"].cursor() as cursor:
        cursor.execute(SchemaManager.get_schema())


def send(name: str, path: str) -> None:
    (aperform if name == "coroutine" else perform).defer(name=name, path=path)
