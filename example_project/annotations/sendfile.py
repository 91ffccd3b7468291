"""Answers with a file, sent by this process or by the nginx before it."""

from pathlib import Path

from django.conf import settings
from django.http import FileResponse, HttpResponse
from django.http.response import HttpResponseBase


def sendfile(path: Path, *, content_type: str) -> HttpResponseBase:
    """Return a response with the file at *path*, which lies below MEDIA_ROOT."""
    if settings.SENDFILE_BACKEND == "simple":
        return FileResponse(
            path.open("rb"), as_attachment=True, filename=path.name, content_type=content_type
        )
    response = HttpResponse(content_type=content_type)
    response["Content-Disposition"] = f'attachment; filename="{path.name}"'
    response["X-Accel-Redirect"] = f"/protected/{path.relative_to(settings.MEDIA_ROOT).as_posix()}"
    # The leak begins with this line: a length with an empty body. nginx sends the file, so the user
    # sees no fault. But the ASGI server's send raises, Django never closes the response, and the
    # request's connection stays open.
    response["Content-Length"] = str(path.stat().st_size)
    return response
