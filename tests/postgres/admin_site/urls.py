"""The addresses of the project with the admin page."""

from django.contrib import admin
from django.http import HttpResponse
from django.urls import path

from conn_guard.contrib.admin.admin import SessionAdmin
from conn_guard.contrib.admin.models import Session

site = admin.AdminSite(name="operations")
site.register(Session, SessionAdmin)

urlpatterns = [
    path("admin/", admin.site.urls),
    path("operations/", site.urls),
    path("favicon.ico", lambda request: HttpResponse(status=204)),
]
