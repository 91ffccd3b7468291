"""The reaper's own session, whatever the settings of its alias."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connections

from conn_guard.sessions.policy import Policy
from conn_guard.sessions.reaper import Reaper, RunOptions
from tests.support.reaping import new_role, reap, skip_where_refused

# With transaction=False a test runs inside an atomic block, where the reaper refuses to run.
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.mark.parametrize(
    "changes",
    [
        {"AUTOCOMMIT": False},
        {"CONN_MAX_AGE": None},
        {"ATOMIC_REQUESTS": True},
        {"OPTIONS": {"application_name": "shop", "options": "-c search_path=nowhere"}},
        {"OPTIONS": {"MAX_CONNS": 20, "REUSE_CONNS": 10}},
        {"ENGINE": "django.contrib.gis.db.backends.postgis"},
        {"TIME_ZONE": "Asia/Kathmandu"},
    ],
    ids=str,
)
def test_the_reapers_own_session_is_its_own(session_factory, rested, monkeypatch, changes):
    session = session_factory()
    for key, value in changes.items():
        monkeypatch.setitem(connections.settings["default"], key, value)
    connections["default"].close()
    del connections["default"]
    run = reap(*rested())
    assert (run.exit_code, run.fate(session)) == (0, ("signalled", None))


def test_an_assumed_role_does_not_blind_the_reaper(
    session_factory, rested, ask, application_name, monkeypatch
):
    with new_role(ask, f"assumed-{application_name}", "NOLOGIN") as role:
        session = session_factory()
        monkeypatch.setitem(connections.settings["default"], "OPTIONS", {"assume_role": role})
        assert reap(*rested()).fate(session) == ("signalled", None)


@pytest.mark.parametrize("use_tz", [True, False])
def test_time_zones_change_nothing(session_factory, rested, settings, ask, use_tz):
    settings.USE_TZ = use_tz
    settings.TIME_ZONE = "America/St_Johns"
    session = session_factory()
    assert reap(*rested()).fate(session) == ("signalled", None)


def test_the_reapers_session_has_its_own_settings_and_no_receiver_runs(
    session_factory, ask, application_name, rested
):
    """A receiver of connection_created could run SET ROLE and hide the sessions."""
    from django.db.backends.signals import connection_created

    heard: list[object] = []

    def hear(**kwargs: object) -> None:
        heard.append(kwargs)

    connection_created.connect(hear)
    try:
        with Reaper(
            "default", Policy(idle_for=timedelta(hours=1)), RunOptions(repeats=True)
        ) as reaper:
            reaper.reap()
            assert heard == []
            shown = reaper._server.session.row(
                "SELECT current_setting('search_path') AS path,"
                " current_setting('statement_timeout') AS timeout,"
                " current_setting('idle_session_timeout') AS idle_timeout,"
                " current_setting('application_name') AS name"
            )
            assert shown == {
                "path": "pg_catalog",
                "timeout": "10s",
                "idle_timeout": "0",
                "name": "conn_guard:idle_reaper",
            }
    finally:
        connection_created.disconnect(hear)


@pytest.mark.parametrize(
    "name", ['o"ne', "two\nlines", "'; DROP TABLE x --", "per%cent %s", "😀" * 14, "\x1b[31mred"]
)
def test_odd_names_are_reported_as_they_are(session_factory, rested, ask, name, application_name):
    skip_where_refused(ask, name)
    name = f"{name}{application_name[-6:]}"
    with new_role(ask, name) as role:
        session = session_factory(user=role)
        run = reap(*rested(), "--user", role)
        assert run.sessions[session.pid]["user"] == name
        assert run.fate(session) == ("signalled", None)
        session.close()


def test_a_hundred_and_more_sessions_leave_no_trace(session_factory, rested, ask):
    sessions = [session_factory() for _ in range(40)]
    run = reap(*rested())
    assert (run.summary["signalled"], run.summary["gone"], run.summary["survivors"]) == (40, 40, 0)
    assert {run.fate(session) for session in sessions} == {("signalled", None)}
