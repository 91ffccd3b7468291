"""The cells that each column brings to zero, and the reasons for the others."""

from __future__ import annotations

from dataclasses import dataclass

COLUMNS = {
    "django": "Django alone",
    "app": "INSTALLED_APPS alone",
    "middleware": "app and middleware",
    "engine": "app, middleware and engine",
}

# Servers whose threads live on from request to request, and how many. Everywhere else the thread of
# a request ends with it.
THREADS_LIVE_ON = {"gunicorn-sync": 1, "gunicorn-gthread": 8, "granian-wsgi": 8}

_EXECUTOR = "the executor's threads live on"
_ERROR_PAGES = ("error_page_404", "error_page_500", "async_error_page_500")

# The engine never closes what is in a transaction: a living thread may be about to commit it.
NEEDS_REAPER = {
    "executor_without_autocommit": "a transaction is open on an executor's thread that lives on"
}

# Whatever the server.
NEEDS_ENGINE = {
    "global_executor": _EXECUTOR,
    "executor_never_shut_down": _EXECUTOR,
    "lifespan_queries": "asgiref's own thread lives on, and no request surrounds the query",
    "asgi_wrapper_queries": "asgiref's own thread lives on, and the query comes before the request",
}

# Where the request's thread lives on, only a middleware knows that the request is over.
NEEDS_MIDDLEWARE = {
    "copy_dropped": "the dropped copy belongs to a thread that lives on",
    "own_handler": "the dropped handler's connection belongs to a thread that lives on",
    "response_close_queries": (
        "the query comes after Django's own end of the request, on a thread that lives on"
    ),
    "late_receiver_queries": (
        "the query comes after Django's own end of the request, on a thread that lives on"
    ),
    "bad_cookie": "Django never ends the request, and its thread lives on",
    "raw_begin": "the transaction is open on a thread that lives on",
    "atomic_never_left": "the thread is in an atomic block that no code leaves, and lives on",
}

# Of these, and where the request's thread lives on, not even a middleware knows.
NEEDS_ENGINE_WHERE_THREADS_LIVE_ON = {
    "wsgi_close_queries": "the query comes after the request, on a thread that lives on"
}

# A wrapper that is dropped can be collected while its thread still runs: the socket closes, but the
# pool waits for its slot.
NEEDS_ENGINE_WITH_A_POOL = {
    "copy_dropped": (
        "a dropped wrapper that the collector finds before its thread ends takes its slot along"
    )
}

# asgiref makes a new thread for what queries after the request, and ends it with the request's
# context, which Django before 6.1 often leaves in a cycle. Only a middleware knows that the request
# is over.
NEEDS_MIDDLEWARE_BEFORE_6_1 = {
    "create_task": (
        "Django before 6.1 often leaves a finished request, and the thread of what queries later,"
        " to the collector"
    )
}

PERSISTENT_THREADS = "CONN_MAX_AGE asks for it: at most one session for each thread and alias"


@dataclass(frozen=True)
class Expectation:
    """What a column owes a cell: *at_most* sessions and no wrong answer; None where it owes
    nothing, for *reason*.
    """

    at_most: int | None
    reason: str = ""


ZERO = Expectation(0)


def expectation(column: str, server: str, mechanism: str, setting: str, django: str) -> Expectation:
    """Return what *column* owes the cell; *django* is the release series, such as ``5.2``."""
    if column == "django":
        return Expectation(None)
    if mechanism in NEEDS_REAPER:
        return Expectation(None, NEEDS_REAPER[mechanism])
    if column != "engine":
        reason = _needs_more(column, server, mechanism, setting)
        if reason:
            return Expectation(None, reason)
        if column == "app" and mechanism in NEEDS_MIDDLEWARE_BEFORE_6_1 and django != "6.1":
            return Expectation(None, NEEDS_MIDDLEWARE_BEFORE_6_1[mechanism])
        if server == "runserver" and django == "4.2":
            # Django 4.2 leaves the connection of runserver's check of migrations open, on the main
            # thread.
            return Expectation(
                1, "runserver's main thread lives on with the connection of its check of migrations"
            )
    if server in THREADS_LIVE_ON and setting in ("60", "None"):
        return Expectation(
            THREADS_LIVE_ON[server] * (2 if mechanism == "two_aliases" else 1), PERSISTENT_THREADS
        )
    return ZERO


def _needs_more(column: str, server: str, mechanism: str, setting: str) -> str:
    found = NEEDS_ENGINE.get(mechanism, "")
    if column == "app" and mechanism in _ERROR_PAGES and setting != "0":
        found = found or "CONN_MAX_AGE asks for it, on the threads of the loop's own executor"
    if setting == "pool":
        found = found or NEEDS_ENGINE_WITH_A_POOL.get(mechanism, "")
    if server in THREADS_LIVE_ON:
        found = found or NEEDS_ENGINE_WHERE_THREADS_LIVE_ON.get(mechanism, "")
        if column == "app":
            found = found or NEEDS_MIDDLEWARE.get(mechanism, "")
    return found
