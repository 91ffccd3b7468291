"""Measure the cost of the static checks at a start, and of the watch at a request.

    python -m benchmarks.bench_checks
    python -m benchmarks.bench_checks --aliases 10 --rounds 200

It prints three times: the first run in a process, which also imports the rules; the median of the
later runs; and one ``request_started`` with and without the receiver of the watch. No server is
needed. Run it twice: the first run on a machine also compiles the modules. Where
PYTHONDONTWRITEBYTECODE is set, every run compiles them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src")]

# An alias that makes each rule read much: OPTIONS, several hosts, keys near to Django's.
ALIAS = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": "app",
    "USER": "app",
    "PASSWORD": "x",
    "HOST": "one.internal,two.internal",
    "PORT": "5432",
    "CONN_MAX_AGE": 60,
    "ATOMIC_REQUESTS": True,
    "TEST": {"NAME": "test_app"},
    "OPTIONS": {
        "sslmode": "require",
        "connect_timeout": 5,
        "application_name": "app",
        "options": "-c statement_timeout=5000 -c search_path=app,public",
        "keepalives_idle": 30,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure what the static checks and the watch cost."
    )
    parser.add_argument(
        "--aliases", type=int, default=10, help="aliases in DATABASES (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=200, help="runs to take the median of (%(default)s)"
    )
    options = parser.parse_args()

    import django
    from django.conf import settings

    names = ["default", *(f"alias_{number}" for number in range(1, options.aliases))]
    settings.configure(
        DATABASES={name: dict(ALIAS) for name in names},
        INSTALLED_APPS=["conn_guard"],
        MIDDLEWARE=["conn_guard.middleware.ConnectionGuardMiddleware"],
        WSGI_APPLICATION="app.wsgi.application",
    )
    django.setup()
    from django.core.signals import request_started

    def static() -> list[object]:
        from conn_guard.checks import rules
        from conn_guard.checks.project import Project

        return list(rules.static_messages(Project.current()))

    first = timed(static)
    found = len(static())
    later = statistics.median(timed(static) for _ in range(options.rounds))
    print(
        f"static checks, {options.aliases} aliases, {found} findings, first run with imports:"
        f" {first * 1e3:.2f} ms"
    )
    print(
        f"static checks, {options.aliases} aliases, {found} findings, later runs:"
        f" {later * 1e3:.2f} ms"
    )

    def requests() -> None:
        for _ in range(1000):
            request_started.send(object, environ={})

    requests()  # the first request reports
    with_watch = statistics.median(timed(requests) for _ in range(options.rounds // 10))
    request_started.disconnect(dispatch_uid="conn_guard.checks.runtime")
    without = statistics.median(timed(requests) for _ in range(options.rounds // 10))
    print(
        f"request_started, with the watch: {with_watch * 1e3:.2f} us; without:"
        f" {without * 1e3:.2f} us"
    )


def timed(function: Callable[[], object]) -> float:
    """Return the processor seconds of *function*, which other programs disturb least."""
    started = time.process_time()
    function()
    return time.process_time() - started


if __name__ == "__main__":
    main()
