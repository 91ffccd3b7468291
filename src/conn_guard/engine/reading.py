"""Driver cursors that show each statement to the engine before it runs.

Raw cursors and raw connections of the application use the same cursor class, so the engine sees
their statements too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.db.backends.postgresql.psycopg_any import is_psycopg3

from conn_guard.engine.statements import KEPT_CHARACTERS, Leaves, remember

_readers: dict[int, Callable[[Any], None]] = {}
"""The reader of each driver connection, by the ``id()`` that its cursors know it by."""


class ReadingCursor:
    """Mixed into a driver's cursor class: shows each statement to the connection's reader."""

    connection: Any

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        # Not split into functions, because every query pays for each call.
        if (
            type(query) is not str
            or len(query) > KEPT_CHARACTERS
            or remember(query) is not Leaves.NOTHING
        ):
            self._show(query)
        if options:
            return super().execute(query, params, **options)  # type: ignore[misc]
        return super().execute(query, params)  # type: ignore[misc]

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        self._show(query)
        return super().executemany(query, *args, **kwargs)  # type: ignore[misc]

    def _show(self, query: Any) -> None:
        reader = _readers.get(id(self.connection))
        if reader is not None:
            reader(query)


class _EqualToItsBase(type):
    """Makes a reading class equal to the driver's class that an application configured."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.__mro__[2]

    def __hash__(cls) -> int:
        return hash(cls.__mro__[2])


@functools.cache
def reading_class(cursors: type) -> type:
    """Return a subclass of the driver's cursor class *cursors* that shows its statements."""
    if issubclass(cursors, ReadingCursor):
        return cursors
    reading = _EqualToItsBase(cursors.__name__, (ReadingCursor, cursors), {})
    for name in ("stream", "copy") if is_psycopg3 else ("callproc", "copy_expert"):
        setattr(reading, name, _reading_method(reading, name))
    return reading


def _reading_method(reading: type, name: str) -> Callable[..., Any]:
    def method(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        self._show(f"SELECT {query}()" if name == "callproc" else query)
        return getattr(super(reading, self), name)(query, *args, **kwargs)

    return method


def connection_of_cursors(raw: Any) -> Any:
    """Return the driver connection that the cursors of *raw* belong to; None if they don't show it.

    Monitoring tools give Django a proxy of the connection, and their cursors run on the real one.
    """
    factory = raw.cursor_factory
    if not isinstance(factory, type) or not issubclass(factory, ReadingCursor):
        return None
    try:
        with raw.cursor() as cursor:
            return cursor.connection
    except Exception:  # noqa: BLE001 - a dead connection, or a proxy that hides what is behind it
        return None


def start_reading(connection: Any, reader: Callable[[Any], None]) -> None:
    """Call *reader* with every statement on *connection*, before it runs."""
    _readers[id(connection)] = reader


def stop_reading(connection: Any) -> None:
    """Show the statements on *connection* no longer."""
    _readers.pop(id(connection), None)
