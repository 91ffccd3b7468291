"""This room holds the addresses of the leaky project: each view under its own name."""

from django.urls import path

from tests.leaks.leaky_site import views

urlpatterns = [path(f"{name}/", view, name=name) for name, view in views.VIEWS.items()]
