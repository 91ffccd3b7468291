"""The only page of the site: it counts the groups and adds one."""

from django.contrib.auth.models import Group
from django.http import HttpResponse
from django.urls import path


def count(request):
    Group.objects.create(name=f"group {Group.objects.count()}")
    return HttpResponse(str(Group.objects.count()))


urlpatterns = [path("", count)]
