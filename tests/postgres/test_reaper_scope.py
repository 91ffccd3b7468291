"""The sessions in scope, the limits of a run, and several aliases and reapers."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connections

from conn_guard.sessions.policy import Policy
from conn_guard.sessions.reaper import Reaper, RunOptions
from tests.support.reaping import new_role, reap

# With transaction=False a test runs inside an atomic block, where the reaper refuses to run.
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


# Scope and brakes


def test_a_filter_that_matches_no_session_ends_none(session_factory, rested, alive):
    session = session_factory()
    rested()
    run = reap("--idle-for", "0.3s", "--application-name", "nobody-has-this-name")
    assert (run.sessions, run.summary["candidates"]) == ({}, 0)
    assert alive(session)


def test_only_the_aliass_own_database_is_in_scope_unless_widened(session_factory, rested):
    here, there = session_factory(), session_factory("other")
    arguments = rested()
    assert set(reap(*arguments, "--dry-run").sessions) == {here.pid}
    assert set(reap(*arguments, "--dry-run", "--any-database").sessions) == {here.pid, there.pid}
    assert set(reap(*arguments, "--dry-run", "--database", "other").sessions) == {there.pid}


def test_clients_are_chosen_and_spared_by_network(session_factory, rested):
    session = session_factory()
    if reap(*rested(), "--dry-run").sessions[session.pid]["client"] != "127.0.0.1":
        pytest.skip("the test server isn't reached over IPv4 loopback")
    arguments = (*rested(), "--dry-run")
    assert reap(*arguments, "--client", "127.0.0.0/8").fate(session)[0] == "would_signal"
    assert reap(*arguments, "--client", "10.0.0.0/8").sessions == {}
    assert reap(*arguments, "--exclude-client", "127.0.0.1").fate(session) == ("spared", "excluded")


def test_max_ends_the_longest_idle_first(session_factory, rested, alive):
    sessions = [session_factory() for _ in range(3)]
    for session in sessions:
        session.execute("SELECT 1")
    run = reap(*rested(), "--max", "2")
    assert [run.fate(session)[0] for session in sessions] == ["signalled", "signalled", "spared"]
    assert run.fate(sessions[2]) == ("spared", "max")
    assert alive(sessions[2])


def test_keep_spares_the_most_recently_used_of_each_application(
    session_factory, rested, application_name
):
    sessions = [
        session_factory(application_name=f"{application_name}:{pid}") for pid in (11, 12, 13)
    ]
    for session in sessions:
        session.execute("SELECT 1")
    run = reap(*rested(), "--keep", "2")
    assert [run.fate(session) for session in sessions] == [
        ("signalled", None),
        ("spared", "keep"),
        ("spared", "keep"),
    ]


def test_below_the_threshold_of_slots_no_session_is_ended(session_factory, rested, alive):
    session = session_factory()
    run = reap(*rested(), "--when-above", "99%")
    assert (run.exit_code, run.summary["status"], run.summary["signalled"]) == (
        0,
        "below_threshold",
        0,
    )
    assert alive(session)
    assert reap(*rested(), "--when-above", "0").fate(session) == ("signalled", None)


def test_the_nearest_limit_counts(ask, session_factory, rested, application_name, monkeypatch):
    with new_role(ask, f"limited-{application_name}", "LOGIN CONNECTION LIMIT 4") as role:
        one, two = session_factory(user=role), session_factory(user=role)
        arguments = (*rested(), "--user", role, "--dry-run")
        summary = reap(*arguments).summary
        assert (summary["slots_used"], summary["slots_total"]) == (2, 4)
        assert reap(*arguments, "--when-above", "50").summary["status"] == "below_threshold"
        assert reap(*arguments, "--when-above", "49").summary["status"] == "done"
        one.close()
        two.close()


def test_roles_are_named_exactly(ask, session_factory, rested, application_name):
    with (
        new_role(ask, f"one-{application_name}") as one,
        new_role(ask, f"two-{application_name}") as two,
    ):
        own, first, second = session_factory(), session_factory(user=one), session_factory(user=two)
        arguments = (*rested(), "--dry-run")
        assert set(reap(*arguments).sessions) == {own.pid}
        assert set(reap(*arguments, "--user", one).sessions) == {first.pid}
        assert set(reap(*arguments, "--user", f"{one[:-1]}*").sessions) == set()
        run = reap(*arguments, "--user", "*", "--exclude-user", two)
        assert run.fate(first)[0] == "would_signal"
        assert run.fate(second) == ("spared", "excluded")
        first.close()
        second.close()


# More than one


def test_one_reaper_at_a_time_for_a_scope(
    session_factory, rested, ask, alive, tmp_path, application_name
):
    session = session_factory()
    arguments = rested()
    metrics = tmp_path / "reaper.prom"
    policy = Policy(idle_for=timedelta(hours=1), applications=(f"{application_name}*",))
    with Reaper("default", policy, RunOptions(repeats=True)) as first:
        assert first.reap().failure is None
        run = reap(*arguments, "--wait", "0.2s", "--metrics-file", str(metrics))
        assert (run.exit_code, run.summary["status"], run.summary["signalled"]) == (
            0,
            "already_running",
            0,
        )
        holder = ask(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 1668247143 AND"
            " granted"
        )
        assert any(f"pid {pid}, connected for " in run.stderr for (pid,) in holder)
        assert alive(session)
        assert "last_success" not in metrics.read_text()
        other_scope = reap(*arguments, "--exclude-user", "nobody")
        assert other_scope.fate(session) == ("signalled", None)
    session = session_factory()
    assert reap(*rested()).fate(session) == ("signalled", None)


@pytest.mark.usefixtures("rested")
def test_the_order_of_the_filters_makes_no_other_scope(application_name):
    names = (application_name, "other", application_name)
    policy = Policy(idle_for=timedelta(hours=1), applications=names, users=("b", "a"))
    with Reaper("default", policy, RunOptions(repeats=True)) as first:
        assert first.reap().failure is None
        options = {"application_name": ["other", application_name], "user": ["a", "b"]}
        run = reap("--idle-for", "1h", "--wait", "0.1s", **options)
        assert run.summary["status"] == "already_running"
        run = reap("--idle-for", "1h", "--wait", "0.1s", exclude_user=options["user"])
        assert run.summary["status"] == "done"


def test_a_dry_run_takes_no_lock(rested, session_factory, application_name):
    session = session_factory()
    policy = Policy(idle_for=timedelta(hours=1), applications=(f"{application_name}*",))
    with Reaper("default", policy, RunOptions(repeats=True)) as first:
        first.reap()
        assert reap(*rested(), "--dry-run").fate(session) == ("would_signal", None)


def test_every_alias_is_reaped_and_each_place_once(session_factory, rested, settings):
    here, there = session_factory(), session_factory("other")
    connections.settings["mirror"] = {**connections.settings["default"]}
    try:
        run = reap(*rested(), "--all-databases")
    finally:
        del connections.settings["mirror"]
    assert set(run.summaries) == {"default", "other"}
    assert run.fate(here) == run.fate(there) == ("signalled", None)
    assert "mirror leads to the same place as default: reaped once" in run.stderr
    assert "lite is no PostgreSQL: skipped" in run.stderr


def test_a_brake_holds_for_the_run_not_for_each_alias(session_factory, rested):
    session_factory(), session_factory("other")
    run = reap(*rested(), "--all-databases", "--max", "1", "--dry-run")
    assert sorted(event["action"] for event in run.sessions.values()) == ["spared", "would_signal"]


def test_an_alias_that_fails_stops_no_other(session_factory, rested, tmp_path, monkeypatch):
    session = session_factory("other")
    monkeypatch.setitem(connections.settings["default"], "PORT", "1")
    monkeypatch.setattr("conn_guard.sessions.login.LOG_IN_FOR", timedelta(0))
    metrics = tmp_path / "reaper.prom"
    metrics.write_text(
        'conn_guard_reaper_last_success_timestamp_seconds{alias="default"} 1700000000.0\n'
    )
    run = reap(*rested(), "--all-databases", "--metrics-file", str(metrics))
    assert run.exit_code == 5
    assert [(event["alias"], event["exit"]) for event in run.errors] == [("default", 5)]
    assert set(run.summaries) == {"other"}
    assert run.fate(session) == ("signalled", None)
    text = metrics.read_text()
    assert (
        'conn_guard_reaper_last_success_timestamp_seconds{alias="default"} 1700000000.0\n' in text
    )
    assert 'conn_guard_reaper_last_run_exit_code{alias="default"} 5\n' in text
    assert 'conn_guard_reaper_last_run_signalled{alias="other"} 1\n' in text
    assert metrics.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["reaper.prom"]
