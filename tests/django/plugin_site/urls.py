"""The views of the live server."""

from django.db import connections
from django.http import HttpResponse
from django.urls import path


def query(request, alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    # Without a length Django's server ends the connection of its client, and with it the thread.
    return HttpResponse(b"queried", headers={"Content-Length": "7"})


urlpatterns = [path("<alias>/", query)]
