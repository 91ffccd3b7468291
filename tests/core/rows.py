"""Sessions for the tables of the pure tests: one that is due, to be varied."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from conn_guard.sessions.session import Session, State
from conn_guard.sessions.stamp import unstamped

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def session(*, idle_for: timedelta | None = timedelta(minutes=15), **fields: Any) -> Session:
    """Return a session of the application that is idle for 15 minutes, with *fields* changed."""
    name = fields.setdefault("application_name", "shop:server")
    row: dict[str, Any] = {
        "pid": 4711,
        "backend_start": NOON - timedelta(hours=1),
        "backend_type": "client backend",
        "user": "shop",
        "database": "shop",
        "application": unstamped(name),
        "client": "10.0.0.7",
        "state": State.IDLE,
        "state_change": None if idle_for is None else NOON - idle_for,
        "observed_at": NOON,
    }
    return Session(**{**row, **fields})


def hidden(**fields: Any) -> Session:
    """Return a session as a role without grants sees it: its names and nothing else."""
    masked = {
        "backend_start": None,
        "backend_type": None,
        "client": None,
        "state": None,
        "hidden": True,
    }
    return session(idle_for=None, **{**masked, "waits_for_client": False, **fields})
