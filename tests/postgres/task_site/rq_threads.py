"""A program that runs two workers in threads of one process until it is told to stop."""

import os
import threading

import django
from redis import Redis
from rq import Queue, SimpleWorker
from rq.timeouts import TimerDeathPenalty

django.setup()

import conn_guard.contrib.rq  # noqa: E402, F401


class ThreadWorker(SimpleWorker):
    death_penalty_class = TimerDeathPenalty

    def _install_signal_handlers(self):
        """Python delivers signals to the main thread alone."""


def work() -> None:
    connection = Redis.from_url(os.environ["REDIS_URL"])
    ThreadWorker([Queue(os.environ["QUEUE"], connection=connection)], connection=connection).work()


for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
threading.Event().wait(300)
