"""The ASGI application of the leaky project."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.leaks.leaky_site.settings")

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application

from tests.leaks.leaky_site import control

django_application = get_asgi_application()


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["path"].startswith("/control/"):
        await _control(scope["path"], send)
    else:
        with control.work():
            if scope["path"] == "/asgi_wrapper_queries/":
                await sync_to_async(_query)()
            await django_application(scope, receive, send)


async def _lifespan(receive, send):
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup" and "LEAKS_LIFESPAN_QUERIES" in os.environ:
            await sync_to_async(_query)()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _control(path, send):
    body = control.answer(path)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _query():
    from tests.leaks.leaky_site.views import query

    query()
