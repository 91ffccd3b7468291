"""This room holds the views of the live server."""

from django.db import connections
from django.http import HttpResponse
from django.urls import path


def query(request, alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse(b"queried")


urlpatterns = [path("<alias>/", query)]
