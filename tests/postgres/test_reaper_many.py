"""Many aliases at once: dead, frozen and full servers delay no other, and each limit is exact."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connections, transaction

from conn_guard.sessions.login import Login
from conn_guard.sessions.parallel import _share
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.reaper import Reaper, RunOptions, reap_all
from conn_guard.sessions.stop import Stop
from tests.support.own_server import IDLE_FOR, own_server
from tests.support.polling import until
from tests.support.programs import free_port
from tests.support.reaping import reap

ROLES = [f"app{number}" for number in range(34)]


@pytest.fixture(scope="module")
def servers(django_db_blocker):
    """Three servers, the last two of which have seven slots for applications."""
    logins = dict.fromkeys(ROLES, "LOGIN")
    with (
        django_db_blocker.unblock(),
        own_server(roles=logins, max_connections=100) as large,
        own_server(max_connections=10) as full,
        own_server(max_connections=10) as still,
    ):
        yield large, full, still


@pytest.fixture
def large(servers):
    yield servers[0]
    servers[0].clean()


@pytest.fixture
def aliases():
    """Return a function that adds an alias of a server, for the time of the test."""
    with ExitStack() as stack:

        def add(server, name, **changes):
            stack.enter_context(server.alias(name, **changes))
            return name

        yield add


@pytest.fixture
def hole():
    """The port of a listener that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


@contextmanager
def frozen_postmaster(server):
    """Stop the process that accepts the logins of *server*; the kernel still takes connections."""
    pid = int((server.server.log.parent / "cluster" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def named(*names):
    return [word for name in names for word in ("--database", name)]


def rest(server, *users, count=1):
    """Open *count* sessions for each of *users*, and return them when they are idle."""
    sessions = [server.session(user) for user in users for _ in range(count)]
    server.rested(*sessions)
    return sessions


def test_forty_aliases_of_which_six_are_dead(servers, large, aliases, hole):
    _, full, still = servers
    refused = str(free_port())
    dead = {
        "hole": {"PORT": hole},
        "refused": {"PORT": refused},
        "hole again": {"PORT": hole},
        "refused again": {"PORT": refused, "USER": "second"},
    }
    for name, changes in dead.items():
        aliases(large, name, **changes)
    aliases(still, "frozen")
    aliases(full, "full")
    order = [*dead, "frozen", "full", *(aliases(large, role, USER=role) for role in ROLES)]
    resting = dict(zip(ROLES, rest(large, *ROLES), strict=True))
    for _ in range(6):  # the observer has the seventh
        full.session()
    still.forget()
    try:
        with frozen_postmaster(still):
            run = reap(*named(*order), "--idle-for", IDLE_FOR, "--connect-for", "2s")
    finally:
        full.clean()
    assert run.exit_code == 5
    assert [(each["alias"], each["exit"]) for each in run.errors] == [
        (name, 5) for name in [*dead, "frozen", "full"]
    ]
    assert list(run.summaries) == ROLES
    assert {run.fate(session) for session in resting.values()} == {("signalled", None)}
    assert {run.sessions[session.pid]["alias"] for session in resting.values()} == set(ROLES)
    told = [f"{name}: can't log in yet, trying for 2 s: " for name in [*dead, "frozen", "full"]]
    assert all(run.stderr.count(line) == 1 for line in told)
    assert not large.reapers()


@pytest.fixture
def process(tmp_path, large):
    """Return a function that runs the command for aliases that differ in some settings."""
    with ExitStack() as stack:

        def start(changes, *arguments):
            base = {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": "127.0.0.1",
                "PORT": str(large.server.port),
                "NAME": "postgres",
            }
            databases = {alias: {**base, **each} for alias, each in changes.items()}
            (tmp_path / "many_settings.py").write_text(
                f"from tests.settings import *\nDATABASES = {databases!r}\n"
            )
            path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])
            started = subprocess.Popen(
                [sys.executable, "-m", "django", "idle_reaper", "--format", "json", *arguments],
                env={**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "many_settings"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(started.communicate)
            stack.callback(lambda: started.poll() is None and started.kill())
            return started

        yield start


def test_a_black_hole_delays_no_other_and_sigterm_reaches_all(process, large, hole):
    (session,) = rest(large, "app1")
    changes = {
        "default": {"PORT": hole},
        "second": {"PORT": hole, "USER": "other"},
        "healthy": {"USER": "app1"},
    }
    started = process(changes, "--all-databases", "--idle-for", IDLE_FOR, "--connect-for", "10m")
    until(lambda: not large.alive(session), timeout=30)
    until(lambda: not large.reapers())
    assert started.poll() is None
    started.send_signal(signal.SIGTERM)
    stdout, stderr = started.communicate(timeout=45)
    events = [json.loads(line) for line in stdout.splitlines()]
    assert [(each["alias"], each["exit"]) for each in events if "exit" in each] == [
        ("default", 143),
        ("second", 143),
        ("healthy", 0),
    ]
    assert started.returncode == 143
    assert "default: stopped by SIGTERM after 0 signals." in stderr
    assert "Traceback" not in stderr
    until(lambda: not large.reapers())


def test_aliases_that_a_signal_left_out_are_counted(process, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        dead = {"PORT": str(silent.getsockname()[1])}
        changes = {"default": dead, "second": {**dead, "USER": "other"}, "healthy": {}}
        metrics = tmp_path / "reaper.prom"
        started = process(changes, "--all-databases", "--jobs", "2", "--metrics-file", str(metrics))
        taken = [silent.accept()[0], silent.accept()[0]]
        started.send_signal(signal.SIGTERM)
        until(lambda: _is_asked(started.pid), timeout=30)
        for each in taken:
            each.close()
    _, stderr = started.communicate(timeout=45)
    assert started.returncode == 143
    assert stderr.endswith("CommandError: Stopped by SIGTERM: 1 of 3 aliases were not reaped.\n")
    assert not metrics.exists()


def _is_asked(pid):
    """Return whether the first SIGTERM was handled: the next one has its default effect."""
    with open(f"/proc/{pid}/status") as file:
        (caught,) = (line.split()[1] for line in file if line.startswith("SigCgt:"))
    return not int(caught, 16) >> (signal.SIGTERM - 1) & 1


def test_staying_keeps_the_session_of_each_alias(process, large):
    changes = {"default": {"USER": "app1"}, "second": {"USER": "app2"}}
    started = process(changes, "--all-databases", "--idle-for", IDLE_FOR, "--every", "0.2s")
    for _ in range(3):
        sessions = rest_and_go(large, "app1", "app2")
        assert sessions
    before = large.reapers()
    rest_and_go(large, "app1", "app2")
    assert large.reapers() == before
    assert len(before) == 2
    started.send_signal(signal.SIGTERM)
    stdout, stderr = started.communicate(timeout=45)
    assert started.returncode == 0
    assert "Traceback" not in stderr
    signalled = [event["alias"] for event in map(json.loads, stdout.splitlines()) if "pid" in event]
    assert signalled.count("default") >= 4
    assert signalled.count("second") >= 4
    until(lambda: not large.reapers())


def test_sessions_that_were_kept_over_rounds_end_with_the_run(large, aliases):
    options, policy = RunOptions(repeats=True), Policy(idle_for=timedelta(hours=1))
    with ExitStack() as stack:
        reapers = [
            stack.enter_context(Reaper(aliases(large, role, USER=role), policy, options))
            for role in ROLES[:3]
        ]
        for _ in range(2):
            assert [each.failure for each in reap_all(reapers, stop=Stop())] == [None] * 3
        assert len(large.reapers()) == 3
    until(lambda: not large.reapers())


def rest_and_go(server, *users):
    sessions = [server.session(user) for user in users]
    until(lambda: not any(map(server.alive, sessions)), timeout=30)
    return sessions


def test_a_budget_is_exact_over_all_aliases(large, aliases):
    users = ROLES[:10]
    sessions = rest(large, *users, count=2)
    order = [aliases(large, role, USER=role) for role in users]
    run = reap(*named(*order), "--idle-for", IDLE_FOR, "--max", "7", "--jobs", "10")
    fates = [run.fate(session) for session in sessions]
    assert fates.count(("signalled", None)) == 7
    assert fates.count(("spared", "max")) == 13
    assert sum(map(large.alive, sessions)) == 13
    assert run.exit_code == 0


def test_a_place_is_reaped_once_by_the_alias_that_comes_first(large, aliases, monkeypatch):
    (session,) = rest(large, "app1")
    attempt, another = Login.attempt, threading.Event()

    def first_is_late(login):
        another.wait(timeout=0.5) if login._alias == "alias0" else another.set()
        return attempt(login)

    monkeypatch.setattr(Login, "attempt", first_is_late)
    order = [aliases(large, f"alias{number}", USER="app1") for number in range(8)]
    run = reap(*named(*order), "--idle-for", IDLE_FOR)
    assert list(run.summaries) == ["alias0"]
    assert run.fate(session) == ("signalled", None)
    assert [line for line in run.stderr.splitlines() if "same place" in line] == [
        f"{name} leads to the same place as alias0: reaped once" for name in order[1:]
    ]


def test_a_place_of_two_addresses_is_reaped_once(large, aliases):
    (session,) = rest(large, "app1")
    order = [
        aliases(large, "name", USER="app1", HOST="localhost"),
        aliases(large, "ip", USER="app1"),
    ]
    run = reap(*named(*order), "--idle-for", IDLE_FOR)
    assert len(run.summaries) == 1
    assert run.fate(session) == ("signalled", None)
    assert run.stderr.count("leads to the same place as") == 1


@pytest.mark.parametrize("jobs", ["1", "4"])
def test_an_alias_in_an_atomic_block_is_refused(large, aliases, jobs):
    one, two = rest(large, "app1", "app2")
    order = [aliases(large, "inside", USER="app1"), aliases(large, "outside", USER="app2")]
    with transaction.atomic("inside"):
        run = reap(*named(*order), "--idle-for", IDLE_FOR, "--jobs", jobs)
    connections["inside"].close()
    assert [(each["alias"], each["exit"]) for each in run.errors] == [("inside", 2)]
    assert large.alive(one)
    assert run.fate(two) == ("signalled", None)


@pytest.mark.parametrize("arguments", [["own"], ["own", "second"]])
def test_one_alias_or_one_job_starts_no_thread(large, aliases, monkeypatch, arguments):
    for number, name in enumerate(arguments):
        aliases(large, name, USER=ROLES[number])
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail(thread.name))
    run = reap(*named(*arguments), "--jobs", "1" if len(arguments) > 1 else "8")
    assert (run.exit_code, list(run.summaries)) == (0, arguments)


def test_a_caller_that_takes_no_more_reports_ends_the_threads(large, aliases):
    dead = aliases(large, "dead", PORT=str(free_port()))
    options = RunOptions(connect_for=timedelta(minutes=10))
    policy = Policy(idle_for=timedelta(hours=1))
    reapers = [
        Reaper(name, policy, options) for name in (aliases(large, "app1", USER="app1"), dead)
    ]
    reports = reap_all(reapers, stop=Stop())
    assert next(reports).alias == "app1"
    closing = threading.Thread(target=reports.close)
    closing.start()
    closing.join(timeout=20)
    assert not closing.is_alive()
    assert [each.name for each in threading.enumerate() if "conn_guard-" in each.name] == []


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_jobs_is_a_number_from_1_on(jobs):
    run = reap("--jobs", jobs)
    assert (run.exit_code, run.error) == (2, f"--jobs: {jobs!r} is not a whole number from 1 on.")


def test_an_alias_begins_its_rounds_at_the_same_share_of_the_interval_in_every_process():
    shares = {alias: round(_share(alias), 3) for alias in ("default", "replica", "shop", "größe")}
    assert shares == {"default": 0.888, "größe": 0.359, "replica": 0.023, "shop": 0.673}


def test_a_report_of_many_aliases_looks_at_them_side_by_side(large, aliases, hole, monkeypatch):
    monkeypatch.setattr("conn_guard.sessions.login.LOG_IN_FOR", timedelta(seconds=2))
    aliases(large, "dead", PORT=hole)
    order = ["dead", *(aliases(large, role, USER=role) for role in ROLES[:3])]
    stdout = io.StringIO()
    with pytest.raises(CommandError) as raised:
        call_command(
            "conn_report", *named(*order), format="json", stdout=stdout, stderr=io.StringIO()
        )
    assert raised.value.returncode == 5
    events = [json.loads(line) for line in stdout.getvalue().splitlines()]
    assert [(each["event"], each["alias"]) for each in events] == [
        ("error", "dead"),
        *(("report", role) for role in ROLES[:3]),
    ]
