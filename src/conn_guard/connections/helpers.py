"""The public helpers: ``closing_connections`` and ``pin``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import connections

from conn_guard import conf
from conn_guard.connections import closing
from conn_guard.connections.ownership import open_here

if TYPE_CHECKING:
    from types import TracebackType

_Function = TypeVar("_Function", bound=Callable[..., Any])


@contextmanager
def pin(alias: str = "default") -> Iterator[None]:
    """Forbid the engine to close or replace this thread's connection of *alias*.

    It is for state that no query can show. Only ``conn_guard.engine`` ends connections of living
    threads, so with another engine there is nothing to forbid.
    """
    wrapper: Any = connections[alias]
    wrapper.conn_guard_pins = getattr(wrapper, "conn_guard_pins", 0) + 1
    try:
        yield
    finally:
        wrapper.conn_guard_pins -= 1


class _Closing:
    """Closes this thread's connections at the end of a block or call, outside atomic blocks."""

    def __init__(self) -> None:
        conf.require()

    def __enter__(self) -> None:
        conf.require()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        close_all()

    async def __aenter__(self) -> None:
        conf.require()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        close_all()
        await sync_to_async(close_all, thread_sensitive=True)()

    def __call__(self, function: _Function) -> _Function:
        if iscoroutinefunction(function):

            @functools.wraps(function)
            async def closing_async(*args: Any, **kwargs: Any) -> Any:
                async with self:
                    return await function(*args, **kwargs)

            return cast("_Function", closing_async)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                "closing_connections can't decorate the generator function"
                f" {getattr(function, '__qualname__', function)!r}, whose body runs after the call:"
                " write 'with closing_connections():' inside it."
            )

        @functools.wraps(function)
        def closing(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast("_Function", closing)


@overload
def closing_connections() -> _Closing: ...
@overload
def closing_connections(function: _Function) -> _Function: ...
def closing_connections(function: _Function | None = None) -> _Closing | _Function:
    """Return a context manager and decorator that closes this thread's connections at its end.

    It is for code outside requests: threads, jobs, schedulers and commands, sync and async. It
    closes the connections of every alias, and copies made by ``connection.copy()``, on success and
    on error. A connection inside an atomic block stays open.

    Raises ImproperlyConfigured where CONN_GUARD is wrong.
    """
    return _Closing() if function is None else _Closing()(function)


def close_all() -> None:
    """Close every connection of this thread that is open and outside an atomic block."""
    for wrapper in open_here():
        if not wrapper.in_atomic_block:
            closing.close(wrapper, "job")
