"""Views that leave a transaction or session state behind."""

import os

from django.db import connection, transaction

from tests.leaks.leaky_site.views.base import ok, query, view


@view
def raw_begin(request):
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1")
    return ok()


@view
def atomic_never_left(request):
    transaction.atomic().__enter__()
    query()
    return ok()


@view
def advisory_lock(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [os.getpid()])
    return ok()


@view
def listen(request):
    with connection.cursor() as cursor:
        cursor.execute("LISTEN leaks")
    return ok()
