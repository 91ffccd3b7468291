"""Views that keep a reference to a connection, or open one that Django doesn't know."""

from django.conf import settings
from django.db import ConnectionHandler, connection, connections

from tests.leaks.leaky_site.models import Parameter
from tests.leaks.leaky_site.views.base import KEPT, in_thread, ok, query, view


@view
def wrapper_kept(request):
    in_thread(lambda: (query(), KEPT.append(connections["default"])))
    return ok()


@view
def driver_connection_kept(request):
    in_thread(lambda: (query(), KEPT.append(connection.connection)))
    return ok()


@view
def traceback_kept(request):
    def fail():
        wrapper = connections["default"]
        try:
            query()
            raise ValueError(wrapper.alias)
        except ValueError as error:
            KEPT.append(error)

    in_thread(fail)
    return ok()


@view
def iterator_kept(request):
    def read_one():
        rows = Parameter.objects.iterator(chunk_size=2)
        next(rows)
        KEPT.append(rows)

    in_thread(read_one)
    return ok()


@view
def copy_dropped(request):
    copy = connection.copy()
    with copy.cursor() as cursor:
        cursor.execute("SELECT 1")
    return ok()


@view
def own_handler(request):
    handler = ConnectionHandler(settings.DATABASES)
    with handler["default"].cursor() as cursor:
        cursor.execute("SELECT 1")
    return ok()
