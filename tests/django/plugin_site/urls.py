"""The views of the live server."""

from django.db import connections
from django.http import HttpResponse
from django.urls import path
from opening import KEPT, in_living_thread, in_thread
from opening import query as query_alias


def query(request, alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    # Without a length Django's server ends the connection of its client, and with it the thread.
    return HttpResponse(b"queried", headers={"Content-Length": "7"})


def leak(request):
    in_thread(query_alias)
    return HttpResponse(b"queried")


def leak_once(request):
    if not KEPT:
        in_living_thread(query_alias)
    return query(request, "default")


def ask_nothing(request):
    return HttpResponse(b"ready")


def fail(request):
    return HttpResponse(status=500)


urlpatterns = [
    path("leak/", leak),
    path("leak-once/", leak_once),
    path("nothing/", ask_nothing),
    path("fail/", fail),
    path("<alias>/", query),
]
