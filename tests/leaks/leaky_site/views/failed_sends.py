"""Views whose answer the server can't send, or whose client leaves."""

import asyncio
import io

from django.http import FileResponse, HttpResponse

from tests.leaks.leaky_site.views.base import CHUNK, aquery, ok, query, view


@view
def x_accel_redirect(request):
    """Answer as django_sendfile's nginx backend does: no body, and the Content-Length of the file
    that nginx will send.
    """
    query()
    return HttpResponse(
        b"", headers={"X-Accel-Redirect": "/protected/file", "Content-Length": "100000"}
    )


@view
def content_length_too_small(request):
    query()
    return HttpResponse(b"a longer body", headers={"Content-Length": "2"})


@view
def bad_cookie(request):
    """Set a cookie that no server can encode."""
    query()
    response = ok()
    response.set_cookie("name", "value", path="/\u20ac")
    return response


@view
async def async_view_left(request):
    await aquery()
    await asyncio.sleep(0.3)
    await aquery()
    return ok()


@view
def file_response_left(request):
    query()
    return FileResponse(io.BytesIO(CHUNK * 40))
