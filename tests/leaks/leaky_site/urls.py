"""The addresses of the leaky project: each view under its own name."""

from django.urls import path

from tests.leaks.leaky_site import views

handler404 = views.errors.page_not_found
handler500 = views.errors.server_error
urlpatterns = [path(f"{name}/", view, name=name) for name, view in views.VIEWS.items()]
