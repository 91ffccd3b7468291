"""Requests through Django's WSGI and ASGI handlers, as servers make them."""

from __future__ import annotations

import asyncio

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import RequestFactory


def wsgi(path, *, read=None):
    """Serve one request as a WSGI server does: read the body, or *read* parts of it, then close."""
    environ = RequestFactory().get(path).environ
    body = WSGIHandler()(environ, lambda *args: None)
    try:
        return b"".join(body) if read is None else b"".join(next(iter(body)) for _ in range(read))
    finally:
        body.close()


async def asgi(path, *, send=None, receive=None):
    """Serve one request as an ASGI server does.

    *send* may raise, as uvicorn's does when the body is shorter than its Content-Length.
    """
    path, _, query = path.partition("?")
    sent = []
    messages = [{"type": "http.request"}]

    async def from_client():
        if messages:
            return messages.pop()
        return await asyncio.sleep(30)

    async def to_client(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [],
    }
    await ASGIHandler()(scope, receive or from_client, send or to_client)
    return b"".join(message.get("body", b"") for message in sent)
