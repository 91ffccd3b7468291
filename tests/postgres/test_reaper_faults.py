"""Faults in the middle of a run: no wrong session ends, none of ours stays, the report is true."""

from __future__ import annotations

import itertools
import os
import signal
from datetime import timedelta

import pytest
from django.db import connections
from django.db.backends.postgresql.base import Database

from conn_guard.sessions.login import SET_UP, OwnSession
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.reaper import Reaper, RunOptions
from conn_guard.sessions.report import Action, Exit
from conn_guard.sessions.server import SIGNAL, Server
from tests.support.own_server import Proxy, frozen, own_server
from tests.support.polling import until
from tests.support.reaping import reap

MANY = int(os.environ.get("CONN_GUARD_TEST_SESSIONS", "150"))
"""How many sessions the run with many has; 2000 takes a minute and 4 GB."""
LOCKED = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = 1668247143 AND granted"


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with (
        django_db_blocker.unblock(),
        own_server(max_connections=MANY + 20, settings={"max_prepared_transactions": 5}) as server,
    ):
        yield server


@pytest.fixture
def before_signal(monkeypatch):
    """Return a function that calls another just before the signal of a given number."""

    def arrange(number, happens):
        send, count = Server.signal, itertools.count(1)

        def happens_and_send(self, session):
            if next(count) == number:
                happens(self)
            return send(self, session)

        monkeypatch.setattr(Server, "signal", happens_and_send)

    return arrange


def rest(server, count):
    """Open *count* idle sessions, the longest idle first, and return the arguments to reap them."""
    sessions = [server.session() for _ in range(count)]
    return sessions, server.rested(*sessions)


# The server, and the way to it


@pytest.mark.parametrize("mode", ["fast", "immediate", "crash"])
def test_a_server_that_goes_in_the_middle_of_a_run(server, before_signal, monkeypatch, mode):
    sessions, arguments = rest(server, 3)

    def restart(_):
        server.forget()
        if (
            mode == "crash"
        ):  # one process dies, and the server ends all others and recovers from its log
            os.kill(sessions[2].pid, signal.SIGKILL)
            until(lambda: not _runs(sessions[2].pid))
        else:
            server.server.restart(mode)

    before_signal(2, restart)
    with server.alias():
        run = reap(*arguments)
        assert run.exit_code == 5
        assert run.error.startswith("own: the reaper's own session ended: ")
        assert run.fate(sessions[0]) == ("signalled", None)
        assert run.fate(sessions[1]) == ("failed", "connection_lost")
        assert run.fate(sessions[2]) == ("would_signal", None)
        sums = {
            key: run.summary[key] for key in ("signalled", "failed", "gone", "survivors", "exit")
        }
        assert sums == {"signalled": 1, "failed": 1, "gone": None, "survivors": None, "exit": 5}
        monkeypatch.undo()
        # Also while the server recovers: a login that comes too early is tried again.
        assert reap(*arguments).exit_code == 0
        sessions, arguments = rest(server, 1)
        assert reap(*arguments).fate(sessions[0]) == ("signalled", None)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_staying_outlives_a_restart_of_the_server(server, tmp_path):
    with server.process(
        tmp_path, "--every", "0.2s", "--idle-for", "0.1s", "--format", "json"
    ) as process:
        until(lambda: server.ask(LOCKED), timeout=30)
        server.forget()
        server.server.restart("immediate")
        session = server.session()
        until(lambda: not server.alive(session), timeout=30)
        exit_code, events, stderr = process.end(signal.SIGTERM)
    assert exit_code == 0
    assert [event["pid"] for event in events if event.get("action") == "signalled"] == [session.pid]
    assert "Traceback" not in stderr


@pytest.mark.parametrize("method", ["signal", "still_there"])
def test_a_connection_that_is_cut_ends_no_other_session(server, monkeypatch, method):
    sessions, arguments = rest(server, 3)
    whole, count = getattr(Server, method), itertools.count(1)
    with Proxy(server.server.host, server.server.port) as proxy, server.alias(PORT=str(proxy.port)):

        def cut_and_go_on(self, *args):
            if next(count) == (2 if method == "signal" else 1):
                proxy.cut()
            return whole(self, *args)

        monkeypatch.setattr(Server, method, cut_and_go_on)
        run = reap(*arguments)
    assert run.exit_code == 5
    until(lambda: not server.reapers())
    assert (run.summary["gone"], run.summary["survivors"]) == (None, None)
    if method == "signal":
        fates = [("signalled", None), ("failed", "connection_lost"), ("would_signal", None)]
        assert server.alive(sessions[1])
        assert server.alive(sessions[2])
    else:
        fates = [("signalled", None)] * 3
    assert [run.fate(session) for session in sessions] == fates
    until(lambda: not server.alive(sessions[0]))


def test_a_proxy_that_closes_each_connection_at_once_is_exit_5(server, monkeypatch):
    (session,), arguments = rest(server, 1)
    monkeypatch.setattr("conn_guard.sessions.login.LOG_IN_FOR", timedelta(seconds=0.2))
    with Proxy(server.server.host, server.server.port) as proxy, server.alias(PORT=str(proxy.port)):
        proxy.refuse()
        run = reap(*arguments)
    assert (run.exit_code, run.sessions) == (5, {})
    assert run.error.startswith("own: can't connect: ")
    assert "\n" not in run.error
    assert server.alive(session)


def test_a_reaper_that_is_itself_terminated_says_so(server, before_signal):
    (first, second), arguments = rest(server, 2)
    before_signal(2, lambda _: server.ask("SELECT pg_terminate_backend(%s)", server.reapers()))
    with server.alias():
        run = reap(*arguments)
    assert (run.exit_code, run.fate(first)) == (5, ("signalled", None))
    assert server.alive(second)


# Time


def test_a_signal_that_takes_too_long_is_a_failure_and_the_rest_go_on(server, monkeypatch):
    sessions, arguments = rest(server, 3)
    run_statement, count = OwnSession.value, itertools.count(1)

    def overrun(self, statement, parameters=None):
        if statement == SIGNAL and next(count) == 2:
            statement = f"SELECT pg_sleep(10); {statement}"
        return run_statement(self, statement, parameters)

    monkeypatch.setattr(OwnSession, "value", overrun)
    monkeypatch.setattr("conn_guard.sessions.login.SET_UP", SET_UP.replace("'10s'", "'1s'"))
    with server.alias():
        run = reap(*arguments)
    fates = [run.fate(session) for session in sessions]
    assert fates == [("signalled", None), ("failed", "statement_timeout"), ("signalled", None)]
    assert (run.exit_code, run.summary["failed"], run.summary["gone"]) == (3, 1, 2)
    assert server.alive(sessions[1])


def test_a_locked_catalogue_ends_the_run_and_no_session(server, monkeypatch):
    (session,), _ = rest(server, 1)
    monkeypatch.setattr("conn_guard.sessions.login.SET_UP", SET_UP.replace("'5s'", "'100ms'"))
    policy = Policy(idle_for=timedelta(seconds=0.1))
    with server.alias(), Reaper("own", policy, RunOptions(repeats=True)) as reaper:
        reaper.scope()
        server.ask("BEGIN")
        server.ask("LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE")
        report = reaper.reap()
        server.ask("ROLLBACK")
        assert report.failed_with is Exit.UNEXPECTED
        assert "lock timeout" in report.failure
        assert list(report.outcomes) == []
        until(lambda: not server.reapers())
        assert server.alive(session)
        assert [each.action for each in reaper.reap().acted_on] == [Action.SIGNALLED]


@pytest.mark.parametrize(
    ("hours", "idle_for", "action"), [(1, "30m", "not_due"), (-1, "0.1s", "signalled")]
)
def test_a_clock_of_this_machine_that_is_wrong_changes_nothing(
    server, tmp_path, hours, idle_for, action
):
    clock = f"""
import datetime, time
real_time, real_datetime = time.time, datetime.datetime
time.time = lambda: real_time() + {hours} * 3600
class Shifted(real_datetime):
    @classmethod
    def now(cls, tz=None):
        return real_datetime.now(tz) + datetime.timedelta(hours={hours})
datetime.datetime = Shifted
"""
    (session,), _ = rest(server, 1)
    with server.process(
        tmp_path, "--idle-for", idle_for, "--format", "json", prelude=clock
    ) as process:
        exit_code, events, _ = process.end()
    assert exit_code == 0
    seen = {event["pid"]: event for event in events if event["event"] == "session"}
    assert seen[session.pid]["action"] == action
    assert 0 < seen[session.pid]["idle_seconds"] < 600


# Signals, and processes that don't answer


def test_a_session_that_does_not_leave_is_a_survivor(server):
    sessions, arguments = rest(server, 3)
    with frozen(sessions[1].pid), server.alias():
        run = reap(*arguments, "--wait", "0.3s")
        assert {run.fate(session) for session in sessions} == {("signalled", None)}
        assert (run.exit_code, run.summary["gone"], run.summary["survivors"]) == (3, 2, 1)
        assert run.error == "own: of 3 signals 0 failed and 1 didn't end their session."
        assert server.alive(sessions[1])
    until(lambda: not server.alive(sessions[1]))


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_between_two_victims_ends_the_run_before_the_next(
    server, before_signal, signum, exit_code
):
    sessions, arguments = rest(server, 3)
    before_signal(2, lambda _: os.kill(os.getpid(), signum))
    handler = signal.getsignal(signum)
    with server.alias():
        run = reap(*arguments)
    assert [run.fate(session)[0] for session in sessions] == [
        "signalled",
        "signalled",
        "would_signal",
    ]
    assert (run.exit_code, run.summary["exit"]) == (exit_code, exit_code)
    assert run.error == f"own: stopped by {signal.Signals(signum).name} after 2 signals."
    assert server.alive(sessions[2])
    assert signal.getsignal(signum) is handler


def test_sigterm_while_it_waits_is_obeyed_at_once(server, tmp_path):
    (first, second), _ = rest(server, 2)
    arguments = ("--idle-for", "0.1s", "--wait", "40s", "--format", "json")
    with frozen(first.pid), server.process(tmp_path, *arguments) as process:
        until(lambda: not server.alive(second), timeout=30)
        exit_code, events, stderr = process.end(signal.SIGTERM)
        assert exit_code == 143
        last = events[-1]
        assert last["signalled"] == last["gone"] + last["survivors"] == 2
        # The signal may come while the reaper looks: then it has not seen that the second left.
        assert last["survivors"] in (1, 2)
        assert stderr.endswith("CommandError: default: stopped by SIGTERM after 2 signals.\n")
        until(lambda: not server.reapers())


def test_sigkill_leaves_neither_session_nor_lock(server, tmp_path):
    (first, second), _ = rest(server, 2)
    with (
        frozen(first.pid),
        server.process(tmp_path, "--idle-for", "0.1s", "--wait", "40s") as process,
    ):
        until(lambda: not server.alive(second), timeout=30)
        assert server.ask(LOCKED)
        process.kill()
        until(lambda: not server.reapers())
    assert server.ask(LOCKED) == []
    until(lambda: not server.alive(first))
    session = server.session()
    with server.alias():
        assert reap(*server.rested(session)).fate(session) == ("signalled", None)


def test_a_server_that_answers_no_more_can_be_left_by_a_second_signal(server, tmp_path):
    """The second SIGTERM ends the command; psycopg2 handles none while it waits: use SIGKILL."""
    (first, second), _ = rest(server, 2)
    with (
        frozen(first.pid),
        server.process(tmp_path, "--idle-for", "0.1s", "--wait", "40s") as process,
    ):
        until(lambda: not server.alive(second), timeout=30)
        (own,) = server.reapers()
        with frozen(own):
            process.send_signal(signal.SIGTERM)
            if hasattr(Database, "Connection"):
                until(lambda: not _catches(process.pid, signal.SIGTERM))
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=20) == -signal.SIGTERM
            else:
                process.kill()
                assert process.wait(timeout=20) == -signal.SIGKILL
    until(lambda: not server.reapers())


def _catches(pid, signum):
    try:
        with open(f"/proc/{pid}/status") as file:
            (caught,) = (line.split()[1] for line in file if line.startswith("SigCgt:"))
    except (FileNotFoundError, ValueError):
        return False
    return bool(int(caught, 16) >> (signum - 1) & 1)


# What the project is like


def test_many_sessions(server):
    sessions, arguments = rest(server, MANY)
    busy = server.session()
    busy.execute("BEGIN")
    with server.alias():
        run = reap(*arguments, "--wait", "30s")
    assert {run.fate(session) for session in sessions} == {("signalled", None)}
    assert (run.exit_code, run.summary["signalled"], run.summary["gone"]) == (0, MANY, MANY)
    assert server.alive(busy)


def test_a_prepared_transaction_outlives_the_session_that_prepared_it(server):
    """It keeps its locks and belongs to no session: none is spared for it, none can end it."""
    server.ask("CREATE TABLE paid (amount int)")
    server.ask("GRANT ALL ON paid TO app")
    try:
        session = server.session()
        session.execute("BEGIN")
        session.execute("INSERT INTO paid VALUES (42)")
        session.execute("SELECT pg_advisory_xact_lock(7)")
        with server.alias():
            run = reap(*server.rested(session), "--dry-run", idle_in_transaction_for="0.1s")
            assert run.fate(session) == ("spared", "advisory_lock")
            session.execute("PREPARE TRANSACTION 'payment'")
            run = reap(*server.rested(session), idle_in_transaction_for="0.1s")
        assert (run.exit_code, run.fate(session), run.summary["gone"]) == (
            0,
            ("signalled", None),
            1,
        )
        assert server.ask("SELECT gid, owner FROM pg_prepared_xacts") == [("payment", "app")]
        assert server.ask("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 7") == [
            (None,)
        ]
        assert server.ask("SELECT * FROM paid") == []
        server.session().execute("COMMIT PREPARED 'payment'")
        assert server.ask("SELECT * FROM paid") == [(42,)]
    finally:
        for (gid,) in server.ask("SELECT gid FROM pg_prepared_xacts"):
            server.ask(f"ROLLBACK PREPARED '{gid}'")
        server.ask("DROP TABLE paid")


def test_the_sessions_of_a_pool_are_reaped_and_the_reapers_is_none_of_them(server):
    with server.alias(OPTIONS={"pool": {"min_size": 2, "max_size": 4}}):
        pooled = _open_pool()
        pids = server.ask("SELECT pid FROM pg_stat_activity WHERE usename = 'app'")
        run = reap(*server.rested(*(type("Pooled", (), {"pid": pid}) for (pid,) in pids)))
        assert run.exit_code == 0
        if pooled:
            assert len(pids) >= 2
            assert {run.sessions[pid]["action"] for (pid,) in pids} == {"signalled"}
            connections["own"].close_pool()


def _open_pool():
    """Open the application's pool and return True; False if this Django or driver has none."""
    # In this order: without psycopg 3 the property `pool` raises.
    if not hasattr(Database, "Connection") or not hasattr(connections["own"], "pool"):
        return False
    pytest.importorskip("psycopg_pool")
    with connections["own"].cursor() as cursor:
        cursor.execute("SELECT 1")
    connections["own"].close()
    connections["own"].pool.wait(timeout=10)
    return True


def test_an_error_check_elsewhere_in_the_project_stops_no_cure(server, tmp_path):
    broken = """
from django.core.checks import Error, register
register(lambda **kwargs: [Error("broken elsewhere", id="shop.E001")], deploy=False)
"""
    (session,), _ = rest(server, 1)
    arguments = ("--idle-for", "0.1s", "--format", "json")
    with server.process(tmp_path, *arguments, prelude=broken, AUTOCOMMIT=False) as process:
        exit_code, events, stderr = process.end()
    assert (exit_code, stderr.count("\n")) == (0, 1)
    assert [event["pid"] for event in events if event.get("action") == "signalled"] == [session.pid]
