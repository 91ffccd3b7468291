"""Every slot is taken: which role gets in, which gets in later, and the advice for the others."""

from __future__ import annotations

import io
import threading
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db.backends.postgresql.base import Database

from conn_guard.sessions.policy import Policy
from conn_guard.sessions.reaper import Reaper, RunOptions
from conn_guard.sessions.refused import LIMIT, NO_SUPERUSER, RESERVE
from conn_guard.sessions.report import Exit
from conn_guard.sessions.stop import Stop
from tests.support.own_server import own_server
from tests.support.polling import until
from tests.support.reaping import reap

ROLES = {
    "app": "LOGIN",
    "limited": "LOGIN CONNECTION LIMIT 3",
    "reaper": "LOGIN",
    "boss": "LOGIN SUPERUSER",
}
HOURLY = Policy(idle_for=timedelta(hours=1))


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with django_db_blocker.unblock(), own_server(roles=ROLES, max_connections=12) as server:
        server.ask("GRANT pg_signal_backend, pg_read_all_stats TO reaper")
        if server.major >= 16:
            server.ask("ALTER SYSTEM SET reserved_connections = 2")
            server.ask("GRANT pg_use_reserved_connections TO reaper")
            server.forget()
            server.server.restart()
        yield server


@pytest.fixture
def fill(server):
    """Return a function that takes every slot that a role can have, and gives the sessions."""

    def take(user="app"):
        server.ask("SELECT 1")  # the observer is in before the doors close
        sessions = []
        while True:
            try:
                sessions.append(server.session(user))
            except Database.OperationalError:
                assert sessions
                return sessions

    return take


@pytest.fixture
def impatient(monkeypatch):
    """Let a log-in be tried again for a moment, not for half a minute."""
    monkeypatch.setattr("conn_guard.sessions.login.LOG_IN_FOR", timedelta(seconds=0.3))


@pytest.mark.usefixtures("impatient")
def test_the_applications_own_role_stays_outside_and_is_told_what_would_help(server, fill):
    sessions = fill()
    with server.alias():
        run = reap(*server.rested(*sessions))
    assert run.exit_code == 5
    assert run.error.startswith("own: can't connect: ")
    assert "remaining connection slots are reserved" in run.error
    assert "\n" not in run.error
    # PostgreSQL 16 and later name a role of theirs; before, the reaper can't tell the reason.
    if server.major >= 16:
        assert " role. Every slot is taken. Now: run idle_reaper --user app with" in run.error
        assert f" To prevent it: {RESERVE}. More: " in run.error
    else:
        assert ". Check HOST, PORT, USER and PASSWORD. If every slot is taken, now: " in run.error
    (threshold, at_once) = run.stderr.splitlines()
    assert threshold.startswith("The threshold is ")
    assert at_once.startswith("own: can't log in yet, trying for 0.3 s: ")
    assert "remaining connection slots are reserved" in at_once
    assert (run.sessions, run.summaries) == ({}, {})
    assert all(server.alive(session) for session in sessions)


@pytest.mark.usefixtures("impatient")
def test_the_roles_that_were_named_are_those_of_the_advice(server, fill):
    fill()
    with server.alias():
        run = reap("--database", "own", "--user", "web", "--user", "O'Tool")
    assert run.exit_code == 5
    assert "run idle_reaper --user web --user 'O'\"'\"'Tool' with the superuser's" in run.error
    assert "--user app" not in run.error


@pytest.mark.usefixtures("impatient")
def test_verbosity_0_tells_the_failure_alone(server, fill):
    fill()
    with server.alias():
        run = reap("--database", "own", verbosity=0)
    assert (run.exit_code, run.stderr) == (5, "")


@pytest.mark.parametrize("user", ["", "app"])
def test_an_alias_of_another_role_gets_in_and_the_same_sessions_are_judged(server, fill, user):
    others = [server.session("limited")]
    sessions = fill()
    arguments = server.rested(*sessions, *others)
    named = ("--user", user) if user else ()
    with server.alias(), server.alias("boss", USER="boss"):
        run = reap(*arguments, *named)
        assert (run.exit_code, run.summary["gone"]) == (0, len(sessions))
        assert {run.fate(session) for session in sessions} == {("signalled", None)}
        assert "own: logged in by alias 'boss'; the scope stays the same\n" in run.stderr
        assert server.alive(others[0])


def test_an_alias_that_stood_in_for_another_is_still_reaped_itself(server, fill):
    sessions = [server.session("boss")]
    sessions += fill()
    arguments = server.rested(*sessions)
    with server.alias(), server.alias("boss", USER="boss"):
        run = reap(*arguments, "--database", "boss")
    assert run.exit_code == 0
    assert set(run.summaries) == {"own", "boss"}
    assert {run.fate(session) for session in sessions} == {("signalled", None)}


@pytest.mark.usefixtures("impatient")
def test_no_other_alias_than_of_the_same_place_and_another_role_stands_in(server, fill):
    fill()
    with (
        server.alias(),
        server.alias("same", USER="app"),
        server.alias("other database", USER="boss", NAME="template1"),
        server.alias("other way", USER="boss", HOST="localhost"),
        server.alias("nameless", USER="boss", OPTIONS={"service": "nowhere"}),
    ):
        run = reap("--database", "own")
        assert run.exit_code == 5
        assert "logged in by" not in run.stderr
        assert "run idle_reaper --database 'other database' --user app --any-database" in run.error
        assert "other way" not in run.error


def test_a_superuser_gets_in_through_its_reserve(server, fill):
    sessions = fill()
    with server.alias(USER="boss"):
        run = reap(*server.rested(*sessions), "--user", "app")
    assert (run.exit_code, run.summary["gone"]) == (0, len(sessions))
    assert run.summary["slots_used"] > run.summary["slots_total"]
    server.session()


def test_sessions_in_the_reserve_are_told_apart_from_those_within_the_limit(server, fill):
    """The observer has a slot of the limit, and the superuser's reaper is beyond it."""
    sessions = fill()
    assert len(sessions) == 12 - 3 - (2 if server.major >= 16 else 0) - 1
    total, stdout = len(sessions) + 1, io.StringIO()
    with server.alias(USER="boss"):
        arguments = (*server.rested(*sessions), "--user", "app", "--dry-run")
        call_command("idle_reaper", *arguments, stdout=stdout, stderr=io.StringIO())
        summary = reap(*arguments).summary
    assert f"  slots {total}/{total} (100% and 1 beyond the limit)  " in stdout.getvalue()
    assert (summary["slots_used"], summary["slots_total"], summary["slots_exact"]) == (
        total + 1,
        total,
        True,
    )


def test_a_reaper_role_gets_in_through_the_reserve_of_16(server, fill):
    if server.major < 16:
        pytest.skip("reserved_connections came with PostgreSQL 16")
    sessions = fill()
    with server.alias(USER="reaper"):
        run = reap(*server.rested(*sessions), "--user", "app", "--when-above", "90")
    assert (run.exit_code, run.summary["gone"]) == (0, len(sessions))


def test_a_connection_limit_on_the_application_leaves_a_slot_to_a_reaper_of_its_own(
    server, fill, impatient
):
    sessions = fill("limited")
    assert len(sessions) == 3
    with server.alias(USER="limited"):
        run = reap(*server.rested(*sessions))
        assert run.exit_code == 5
        assert 'too many connections for role "limited"' in run.error
    with server.alias(USER="reaper"):
        run = reap(*server.rested(*sessions), "--user", "limited", "--when-above", "99")
    assert (run.exit_code, run.summary["gone"]) == (0, 3)
    assert (run.summary["slots_used"], run.summary["slots_total"]) == (3, 3)


def test_a_limit_on_the_database_leaves_a_way_in_through_another(server, fill, impatient):
    server.ask("ALTER DATABASE postgres CONNECTION LIMIT 3")
    try:
        sessions = fill()
        with server.alias(USER="reaper"):
            assert reap(*server.rested(*sessions), "--user", "app").exit_code == 5
        with server.alias(USER="reaper", NAME="template1"):
            run = reap(*server.rested(*sessions), "--user", "app", "--any-database")
        assert (run.exit_code, run.summary["gone"]) == (0, len(sessions))
    finally:
        server.ask("ALTER DATABASE postgres CONNECTION LIMIT -1")


def test_a_slot_that_comes_free_in_the_meantime_lets_the_reaper_in(server, fill):
    first, *others = fill()
    arguments = server.rested(*others)
    refused = server.server.log.read_text().count("FATAL")

    def leave_when_one_was_refused():
        until(lambda: server.server.log.read_text().count("FATAL") > refused)
        first.close()

    thread = threading.Thread(target=leave_when_one_was_refused)
    thread.start()
    try:
        with server.alias():
            run = reap(*arguments)
    finally:
        thread.join()
    assert run.exit_code == 0
    assert {run.fate(each) for each in others} == {("signalled", None)}


def test_a_refused_log_in_is_tried_again_at_uneven_times_and_not_for_ever(
    server, fill, monkeypatch
):
    pauses = []

    class Impatient(Stop):
        def sleep(self, seconds):
            pauses.append(seconds)

    monkeypatch.setattr("conn_guard.sessions.login.LOG_IN_FOR", timedelta(seconds=0.5))
    fill()
    with (
        server.alias(),
        Reaper(
            "own", Policy(idle_for=timedelta(hours=1)), RunOptions(), stop=Impatient()
        ) as reaper,
    ):
        report = reaper.reap()
    assert report.failed_with is Exit.UNREACHABLE
    assert report.seconds < 20
    assert len(set(pauses)) == len(pauses) > 1
    assert all(0.1 <= pause <= 0.5 for pause in pauses)


@pytest.mark.usefixtures("impatient")
def test_with_every_a_login_that_keeps_failing_is_told_in_the_first_round_only(server, fill):
    told = []
    options = RunOptions(repeats=True)
    with server.alias(), Reaper("own", HOURLY, options, tell=told.append) as reaper:
        sessions = fill()
        for _ in range(2):
            assert reaper.reap().failed_with is Exit.UNREACHABLE
        assert len(told) == 1
        sessions[0].close()
        until(lambda: reaper.reap().failure is None)
        server.ask("SELECT pg_terminate_backend(%s)", server.reapers())
        until(lambda: not server.reapers())
        server.session()
        assert "own session ended" in reaper.reap().failure
        assert "can't connect" in reaper.reap().failure
        assert len(told) == 2


def test_one_that_stays_keeps_its_slot_and_needs_no_other(server, fill):
    with (
        server.alias(),
        Reaper("own", Policy(idle_for=timedelta(seconds=0.1)), RunOptions(repeats=True)) as reaper,
    ):
        assert reaper.reap().failure is None
        (own,) = server.reapers()
        sessions = fill()
        server.rested(*sessions)
        report = reaper.reap()
        assert (report.failure, report.signalled, report.gone) == (
            None,
            len(sessions),
            len(sessions),
        )
        assert server.reapers() == [own]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("user", ["app", "boss"])
def test_one_that_lost_its_slot_knows_what_would_help_on_this_server(server, fill, user):
    with (
        server.alias(USER=user),
        Reaper("own", HOURLY, RunOptions(repeats=True)) as reaper,
    ):
        assert reaper.reap().failure is None
        (own,) = server.reapers()
        server.ask("SELECT pg_terminate_backend(%s)", [own])
        until(lambda: not server.reapers())
        # The observer is a superuser too: every slot means the reserved ones as well.
        sessions = fill(user)
        assert reaper.reap().failed_with is Exit.UNREACHABLE
        report = reaper.reap()
        assert report.failed_with is Exit.UNREACHABLE
        cure = NO_SUPERUSER if user == "boss" else RESERVE if server.major >= 16 else LIMIT
        assert f" To prevent it: {cure}. More: " in report.failure
        sessions[0].close()
        until(lambda: reaper.reap().failure is None)
