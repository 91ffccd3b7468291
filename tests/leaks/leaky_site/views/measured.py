"""Views that only the benchmarks drive."""

import io

from django.db import connection
from django.http import FileResponse, HttpResponse

from tests.leaks.leaky_site.views.base import CHUNK, query, view


@view
def backend_pid(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return HttpResponse(str(cursor.fetchone()[0]))


@view
def large(request):
    query()
    return HttpResponse(CHUNK * 80)


@view
def large_file(request):
    query()
    return FileResponse(io.BytesIO(CHUNK * 80))
