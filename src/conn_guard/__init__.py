"""The public names of conn_guard, which ends the leak of PostgreSQL connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conn_guard.connections.helpers import closing_connections, pin

__all__ = ["closing_connections", "pin"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy, so that the pure modules can be imported without Django.
    if name in __all__:
        from conn_guard.connections import helpers

        return getattr(helpers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
