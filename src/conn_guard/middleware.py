"""The middleware: it connects each request and its response to one RequestScope."""

from __future__ import annotations

import functools
import io
import tempfile
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.files import File
from django.core.handlers.asgi import ASGIRequest
from django.http import FileResponse
from django.http.response import HttpResponseBase

from conn_guard import conf
from conn_guard.checks import startup
from conn_guard.connections import ownership, scopes
from conn_guard.connections.scopes import RequestScope

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


class ConnectionGuardMiddleware:
    """End a request's connections when the request ends. Put it first in MIDDLEWARE.

    Raises ImproperlyConfigured where CONN_GUARD is wrong.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        conf.require()
        startup.report(context="middleware")
        ownership.watch()
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self.__acall__(request)
        scope = _scope(request)
        if scope is None:
            return self.get_response(request)  # type: ignore[no-any-return]
        scope.look()
        try:
            response: HttpResponseBase = self.get_response(request)
            _attach(response, scope)
        except BaseException:
            scope.finish()
            raise
        if not response.streaming or _streams_a_file(response):
            scope.end()
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        scope = _scope(request)
        if scope is None:
            return await self.get_response(request)  # type: ignore[no-any-return]
        try:
            response: HttpResponseBase = await self.get_response(request)
            _attach(response, scope)
        except BaseException:
            # If the request was cancelled, its synchronous code may still run on another thread.
            # That thread closes its own connections when it ends.
            scope.finish()
            raise
        if not response.streaming or _streams_a_file(response):
            if scope.waits or _is_large(response):
                await scope.aend()
            else:
                # aend() switches to the thread of the synchronous code, which is the costly part.
                scope.end()
        return response


def _scope(request: HttpRequest) -> RequestScope | None:
    settings = conf.current()
    if settings.close == "never":
        return None
    is_asgi = isinstance(request, ASGIRequest)
    return RequestScope(
        view=functools.partial(_view_of, request),
        keep_persistent=settings.close == "auto" and not is_asgi,
        close_found=settings.close == "always",
        # Without an owner that closes it later, the request itself must close the connection.
        waits=not (is_asgi and settings.close_with_owner and scopes.has_own_thread()),
    )


def _view_of(request: HttpRequest) -> str:
    """Return the view's dotted path and URL name, or the URL's path if no view was found."""
    match = request.resolver_match
    if match is None:
        return request.path
    return f"{match._func_path} ({match.view_name})" if match.url_name else match._func_path


_BUFFERED_BYTES = 64 * 1024
"""A body up to this size fits into a server's write buffer, so a slow client doesn't delay it."""


def _is_large(response: HttpResponseBase) -> bool:
    return response.streaming or len(cast("HttpResponse", response).content) > _BUFFERED_BYTES


def _streams_a_file(response: HttpResponseBase) -> bool:
    """Return whether the streaming *response* can be sent without a database connection."""
    return isinstance(response, FileResponse) and _needs_no_database(response.file_to_stream)


def _needs_no_database(file: Any) -> bool:
    """Return whether *file* is a file of the operating system or in memory."""
    while isinstance(file, File):
        # Some storages open their file at the first access, so ``file`` may be missing.
        file = vars(file).get("file") or vars(file).get("_file")
    if isinstance(file, tempfile._TemporaryFileWrapper):
        file = file.file
    if isinstance(file, (io.BufferedReader, io.BufferedRandom)):
        file = file.raw
    return type(file) in (io.FileIO, io.BytesIO, tempfile.SpooledTemporaryFile)


def _attach(response: HttpResponseBase, scope: RequestScope) -> None:
    """Make *scope* end with a streamed body of *response*, and finish when *response* is closed."""
    response.close = _Close(response, scope)  # type: ignore[method-assign]
    if response.streaming and not isinstance(response, FileResponse):
        stream = _astream if getattr(response, "is_async", False) else _stream
        response.streaming_content = stream(response.streaming_content, scope)  # type: ignore[attr-defined]


def _stream(content: Iterator[bytes], scope: RequestScope) -> Iterator[bytes]:
    try:
        yield from content
    finally:
        scope.end()


async def _astream(content: AsyncIterator[bytes], scope: RequestScope) -> AsyncIterator[bytes]:
    try:
        async for part in content:
            yield part
    finally:
        await scope.aend()


class _Close:
    """The ``close()`` of one response: Django's own first, then the end of the request's scope.

    In this order, queries in ``close()`` and in receivers of ``request_finished`` have run before
    the connections end. The reference to the response is weak: with a cycle, every response would
    wait for the garbage collector.
    """

    def __init__(self, response: HttpResponseBase, scope: RequestScope | None) -> None:
        self.response = weakref.ref(response)
        # A copy of the response that a middleware above returns shares this list. A response that
        # is being restored from a cache has none yet.
        self.closers = vars(response).get("_resource_closers", [])
        own = vars(response).get("close")
        # A view may return the same response object for every request.
        self.own: Callable[[], None] | None = own.own if isinstance(own, _Close) else own
        self.scope = scope

    def __call__(self) -> None:
        response = self.response()
        # If requests share the response object, this call belongs to the request that runs here.
        scope = scopes.current.get()
        if scope is None or scope.finished:
            scope = self.scope
        try:
            if self.own is not None:
                self.own()
            elif response is not None:
                type(response).close(response)
            else:
                stand_in = HttpResponseBase()
                stand_in._resource_closers = self.closers  # type: ignore[attr-defined]
                stand_in.close()
        finally:
            if scope is not None:
                scope.finish()

    def __reduce__(self) -> tuple[type[_Close], tuple[HttpResponseBase | None, None]]:
        # A cache middleware above this one pickles the response. A response restored from the
        # cache belongs to no request.
        return type(self), (self.response(), None)
