"""The configuration of RQ without django-rq; ``rq worker -c`` names it."""

import os

import django

django.setup()

if os.environ.get("GUARDED") != "0":
    import conn_guard.contrib.rq  # noqa: F401

REDIS_URL = os.environ["REDIS_URL"]

if os.environ.get("PARENT_QUERIES"):
    from tests.postgres.task_site import jobs

    jobs.query()
