"""The WSGI application of the leaky project."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.leaks.leaky_site.settings")

from django.core.wsgi import get_wsgi_application

from tests.leaks.leaky_site import control

django_application = get_wsgi_application()


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/control/"):
        body = control.answer(path)
        start_response(
            "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        )
        return [body]
    with control.work():
        body = django_application(environ, start_response)
    return _QueriesInClose(body) if path == "/wsgi_close_queries/" else body


class _QueriesInClose:
    """A wrapper around Django, as tracing tools bring one, that queries after Django's own
    ``close()``.
    """

    def __init__(self, body):
        self.body = body

    def __iter__(self):
        return iter(self.body)

    def close(self):
        from tests.leaks.leaky_site.views import query

        self.body.close()
        query()
