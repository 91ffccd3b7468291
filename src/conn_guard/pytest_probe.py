"""Probes the URLs of a live server in a test, and fails the test if one leaks."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from conn_guard import conf, pages
from conn_guard.probe import Mode, Options, TargetError, UrlReport, Verdict, probe_urls
from conn_guard.probe.render import sentence
from conn_guard.sessions.report import RunError

_PASSING = (Verdict.CLEAN, Verdict.KEEPS)
_DEFAULTS = {"requests": 20, "concurrency": 4, "settle": 1}
"""Fewer requests than the command sends: each leaked session of a test counts."""
_IN_TESTS = {
    "--application-name": "applications",
    "--concurrency": "concurrency",
    "--cookie": "cookies",
    "--database": "alias",
    "--expect": "expect",
    "--header": "headers",
    "--i-own-this-host": "own_host=True",
    "--requests": "requests",
    "--settle": "settle",
}
"""The fixture's names for the options that the messages of a probe name."""
_OPTION = re.compile("|".join(_IN_TESTS))


def probe(
    server: object, paths: tuple[str, ...], *, alias: str, budget: int, options: Mapping[str, Any]
) -> list[UrlReport]:
    """Return the reports on the *paths* of *server*; fail the test if one leaks or is unclear.

    *budget* is the number of leaked sessions that a URL may leave.
    """
    from django.db import connections

    if connections[alias].vendor != "postgresql":
        pytest.fail(f"leak_probe needs PostgreSQL, and {alias!r} is none.", pytrace=False)
    base = str(getattr(server, "url", server)).rstrip("/")
    urls = [f"{base}/{path.removeprefix('/')}" for path in paths or ("/",)]
    wrong = ""
    reports: list[UrlReport] = []
    with _no_collection(), _opened_elsewhere(alias) as opened:
        try:
            reports = probe_urls(
                urls,
                _options(options, budget),
                alias=alias,
                pooled=conf.current().pooler.get(alias) == "session",
            )
        except (RunError, TargetError) as error:
            wrong = str(error)
    if opened:
        reports = [
            replace(each, verdict=Verdict.CLEAN, why="no session stays") if each.is_silent else each
            for each in reports
        ]
    if failed := [each for each in reports if each.verdict not in _PASSING]:
        wrong = "\n".join([*map(sentence, failed), _hint(failed, budget)])
    if wrong:
        pytest.fail(_OPTION.sub(lambda option: _IN_TESTS[option[0]], wrong), pytrace=False)
    return reports


@contextmanager
def _opened_elsewhere(alias: str) -> Iterator[list[int]]:
    """Note the threads of this process, other than this one, that connect by *alias*.

    A server in this process proves so that a URL queries, also where its sessions end so early
    that the probe sees none of them.
    """
    from django.db.backends.signals import connection_created

    opened: list[int] = []
    here = threading.get_ident()

    def note(connection: Any, **kwargs: object) -> None:
        if connection.alias == alias and threading.get_ident() != here:
            opened.append(threading.get_ident())

    connection_created.connect(note)
    try:
        yield opened
    finally:
        connection_created.disconnect(note)


def _options(given: Mapping[str, Any], budget: int) -> Options:
    values = {**_DEFAULTS, **given}
    for name in ("settle", "timeout"):
        if isinstance(values.get(name), (int, float)):
            values[name] = timedelta(seconds=values[name])
    if "modes" in values:
        values["modes"] = tuple(map(Mode, values["modes"]))
    return Options(min_leaked=budget + 1, min_share=0.0, **values)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's collector off: it closes some forgotten connections, at any moment."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
            # The teardown of the database must not wait for the leaked sessions.
            gc.collect()


def _hint(failed: list[UrlReport], budget: int) -> str:
    if any(each.verdict is Verdict.LEAKS for each in failed):
        return (
            "HINT: Close the connection where it is opened: decorate what a thread runs with"
            f" conn_guard.closing_connections. The budget is {budget} (--conn-guard-budget)."
        )
    page = pages.address("reference/pytest-plugin.md#leak_probe")
    return f"HINT: Probe a URL that queries and answers 200. The options of leak_probe: {page}"
