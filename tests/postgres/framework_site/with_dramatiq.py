"""Dramatiq's actors; ``dramatiq`` loads this module."""

import os

import django
import dramatiq
from django.conf import settings
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO

from tests.postgres.framework_site import outcomes

django.setup()

broker = RedisBroker(url=os.environ["REDIS_URL"], namespace=os.environ["NAMESPACE"])
broker.add_middleware(AsyncIO())
if settings.CURE == "own":
    from django_dramatiq.middleware import DbConnectionsMiddleware

    broker.add_middleware(DbConnectionsMiddleware())
if settings.CURE == "line":
    from conn_guard.contrib.dramatiq import ConnectionGuardMiddleware

    broker.add_middleware(ConnectionGuardMiddleware())
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def perform(name: str, path: str) -> None:
    outcomes.perform(name, path)


@dramatiq.actor(max_retries=0)
async def aperform(name: str, path: str) -> None:
    await outcomes.aperform(name, path)


def send(name: str, path: str) -> None:
    (aperform if name == "coroutine" else perform).send(name, path)
