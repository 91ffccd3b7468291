"""APScheduler's jobs; the scheduler runs in the program that adds them, as it does in a project."""

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from django.conf import settings

from conn_guard import closing_connections
from tests.postgres.framework_site import outcomes

cure = closing_connections if settings.CURE == "line" else lambda function: function
# One thread: the next job runs where the last one did.
scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone="UTC")


@cure
def perform(name: str, path: str) -> None:
    outcomes.perform(name, path)


def prepare() -> None:
    scheduler.start()


def send(name: str, path: str) -> None:
    scheduler.add_job(perform, args=[name, path])
