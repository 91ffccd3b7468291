"""The hooks of the pytest plugin, for pytest 7 or newer with pluggy 1.2 or newer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator
from typing import Any

import pytest

from conn_guard.pytest_watch import Watch, report

_WATCH = pytest.StashKey[Watch]()


class LeakedConnectionWarning(pytest.PytestWarning):
    """The warning of ``--conn-guard=warn``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conn_guard")
    group.addoption(
        "--conn-guard",
        choices=("error", "warn"),
        help=(
            "Fail, or warn of, every test that leaves a database connection open in another thread,"
            " or a session whose connection is no longer used."
        ),
    )
    group.addoption(
        "--conn-guard-budget",
        type=_count,
        default=0,
        metavar="N",
        help="The sessions that a URL may leave before the fixture leak_probe fails. Default: 0.",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on.")
    return int(text)


@pytest.fixture
def leak_probe(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return ``leak_probe(live_server, "/path/")``, which fails the test if the URL leaks."""
    budget = request.config.option.conn_guard_budget

    def leak_probe(server: object, *paths: str, alias: str = "default", **options: Any) -> Any:
        from conn_guard.pytest_probe import probe

        return probe(server, paths, alias=alias, budget=budget, options=options)

    return leak_probe


@pytest.fixture
def no_leaked_connections(request: pytest.FixtureRequest) -> None:
    """Fail the test if it leaves a connection open in another thread, or an unused session."""
    # pytest_runtest_setup has made the watch, unless the fixture comes from getfixturevalue().
    if _WATCH not in request.config.stash:
        request.config.stash[_WATCH] = Watch()
    request.config.stash[_WATCH].fails = True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    wanted = "no_leaked_connections" in getattr(item, "fixturenames", ())
    if wanted or item.config.option.conn_guard:
        watch = item.config.stash[_WATCH] = Watch()
        watch.fails = item.config.option.conn_guard == "error"
    yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    watch = request.config.stash.get(_WATCH, None)
    if watch is None or fixturedef.scope == "function":
        return (yield)
    # Connections that a fixture of a wider scope opens outlive the test by design.
    with watch.paused():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    watch = item.config.stash.get(_WATCH, None)
    if watch is None:
        return (yield)
    try:
        yield
        if leaks := watch.leaks():
            text = report(leaks)
            if watch.fails:
                pytest.fail(text, pytrace=False)
            item.warn(LeakedConnectionWarning(text))
    finally:
        watch.end()
        del item.config.stash[_WATCH]
