"""How the session of ours logs in, and what went wrong when it could not."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from django.db import connections
from django.db.utils import load_backend

from conn_guard.sessions.session import REAPER_APPLICATION

# A whole address, or a password in one, that somebody put where a name belongs.
_SECRETS = re.compile(r"[a-z+]+://[^\s'\"]+|password\s*=\s*('[^']*'|\S+)", re.IGNORECASE)

# Keys of OPTIONS that belong to Django, a pool or the project's own habits; what is left are
# libpq's own.
_NOT_OURS = {
    "assume_role",
    "autocommit",
    "connection_factory",
    "context",
    "cursor_factory",
    "isolation_level",
    "pool",
    "prepare_threshold",
    "row_factory",
    "server_side_binding",
}
_OURS = {
    "application_name": REAPER_APPLICATION,
    # Empty, not absent: libpq would take PGOPTIONS from the environment, and poolers refuse startup
    # options.
    "options": "",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class LostError(Exception):
    """The reaper's own session ended before its time; the text is the server's words or the
    driver's.
    """


class PooledError(Exception):
    """A pooler answers for the server, so that no session of ours is ours alone."""


class TooOldError(Exception):
    """The server is older than the views and settings that a safe reaper needs."""


def own_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return an alias's *settings* as the reaper's own session needs them."""
    given = settings.get("OPTIONS") or {}
    # libpq writes its keys in lower case; MAX_CONNS and its like belong to a third party's engine.
    options = {
        name: value for name, value in given.items() if name.islower() and name not in _NOT_OURS
    }
    return {
        **settings,
        "ENGINE": "django.db.backends.postgresql",
        "AUTOCOMMIT": True,
        "ATOMIC_REQUESTS": False,
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": False,
        "TIME_ZONE": None,
        "OPTIONS": {**options, **_OURS},
    }


def connect(alias: str) -> Any:
    """Return a connection of Django's stock engine, in autocommit, over which nothing was sent yet.

    The engine's own first words are left out: a time zone set before the pooler check would stay on
    somebody else's session. No receiver of ``connection_created`` hears of it: a project's ``SET
    ROLE`` would mask the sessions that we came for."""
    connection = load_backend("django.db.backends.postgresql").DatabaseWrapper(
        own_settings(connections.settings[alias]), alias
    )
    connection.queries_log = deque(maxlen=0)  # with DEBUG, Django would keep every statement
    with connection.wrap_database_errors:
        connection.connection = connection.get_new_connection(connection.get_connection_params())
        connection.set_autocommit(True)
    connection.run_on_commit = []
    return connection


def words(error: BaseException, alias: str) -> str:
    """Return the text of a database *error* without what DATABASES[alias] keeps secret."""
    settings = connections.settings[alias]
    options = settings.get("OPTIONS") or {}
    text = str(error)
    for secret in (
        settings.get("PASSWORD"),
        options.get("password"),
        options.get("sslpassword"),
        options.get("options"),
    ):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return _SECRETS.sub("***", text)


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a database *error*, whichever driver raised it."""
    cause = error.__cause__ or error
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
