"""The reaper on real sessions: which it ends, which it spares, and its output."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from conn_guard.sessions import census
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.reaper import Reaper, RunOptions
from conn_guard.sessions.report import Action
from tests.support.polling import until
from tests.support.reaping import RawClient, reap

# With transaction=False a test runs inside an atomic block, where the reaper refuses to run.
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


def test_a_session_at_rest_is_ended_and_gone(session_factory, rested, alive):
    session = session_factory()
    run = reap(*rested())
    assert run.exit_code == 0
    assert run.fate(session) == ("signalled", None)
    assert not alive(session)
    assert run.summary.pop("longest_idle_seconds") >= 0.3
    assert run.summary | {"seconds": 0, "slots_used": 0, "slots_total": 0} == {
        "event": "summary",
        "alias": "default",
        "candidates": 1,
        "idle": 1,
        "signalled": 1,
        "spared": {},
        "failed": 0,
        "gone": 1,
        "survivors": 0,
        "slots_used": 0,
        "slots_total": 0,
        "slots_exact": True,
        "seconds": 0,
        "dry_run": False,
        "status": "done",
        "exit": 0,
    }


def test_the_event_of_a_session_says_which_it_was(session_factory, rested, application_name):
    session = session_factory()
    ((backend_start,),) = session.execute(
        "SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    )
    event = reap(*rested()).sessions[session.pid]
    settings = connections["default"].settings_dict
    assert event.pop("idle_seconds") >= 0.3
    assert (
        event.pop("backend_start")
        == backend_start.astimezone(connections["default"].timezone).isoformat()
    )
    assert event.pop("client") in ("127.0.0.1", "::1", None)
    assert event == {
        "event": "session",
        "alias": "default",
        "pid": session.pid,
        "user": settings["USER"],
        "database": settings["NAME"],
        "application_name": application_name,
        "state": "idle",
        "action": "signalled",
        "reason": None,
    }


def test_a_dry_run_shows_the_same_and_ends_no_session(session_factory, rested, alive):
    session = session_factory()
    run = reap(*rested(), "--dry-run")
    assert run.fate(session) == ("would_signal", None)
    assert (run.summary["candidates"], run.summary["signalled"], run.summary["dry_run"]) == (
        1,
        0,
        True,
    )
    assert alive(session)


def test_a_session_that_is_young_or_at_work_is_not_due(session_factory, rested, alive):
    young, busy = session_factory(), session_factory()
    thread = threading.Thread(target=lambda: busy.execute("SELECT pg_sleep(3)"))
    thread.start()
    try:
        until(lambda: reap(*rested(), "--dry-run").fate(busy) == ("not_due", "active"))
        scope = rested()[2:]
        assert reap("--idle-for", "1h", *scope).fate(young) == ("not_due", "too_young")
        assert reap("--idle-for", "0.3s", *scope).fate(busy) == ("not_due", "active")
        assert alive(busy)
    finally:
        thread.join()


def test_the_reaper_spares_itself_and_leaves_no_session(ask):
    run = reap("--application-name", "conn_guard:*")
    (own,) = (event for event in run.sessions.values() if event["reason"] == "self")
    assert own["action"] == "spared"
    assert run.summary["spared"]["self"] == 1
    until(lambda: not ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [own["pid"]]))


# Which sessions are spared


def test_another_reaper_is_spared(session_factory, rested, alive):
    other = session_factory(application_name="conn_guard:idle_reaper")
    session_factory()
    assert reap(*rested(), application_name=["*"], dry_run=True).fate(other) == ("spared", "reaper")


def test_an_idle_walsender_is_spared(address, application_name, rested, ask):
    client = RawClient(**address, application_name=application_name, replication="database")
    try:
        rows = ask("SELECT state, backend_type FROM pg_stat_activity WHERE pid = %s", [client.pid])
        assert rows == [("idle", "walsender")]
        assert reap(*rested()).fate(client) == ("spared", "backend_type")
    finally:
        client.close()


def test_the_holder_of_an_advisory_lock_is_spared_until_it_lets_go(session_factory, rested):
    session = session_factory()
    session.execute("SELECT pg_advisory_lock(4711, 42)")
    assert reap(*rested()).fate(session) == ("spared", "advisory_lock")
    session.execute("SELECT pg_advisory_unlock_all()")
    assert reap(*rested()).fate(session) == ("signalled", None)


def test_a_listener_is_spared_as_long_as_listen_was_its_last_statement(session_factory, rested):
    listener, worker = session_factory(), session_factory()
    listener.execute("/* jobs */ LISTEN jobs")
    worker.execute("LISTEN jobs")
    worker.execute("SELECT 1")
    run = reap(*rested())
    assert run.fate(listener) == ("spared", "listen")
    assert run.fate(worker) == ("signalled", None)


def test_a_session_that_the_engine_marked_is_spared(session_factory, rested):
    session = session_factory()
    session.execute("/* conn_guard:holds-state */ SELECT 1")
    assert reap(*rested()).fate(session) == ("spared", "holds_state")


def test_the_owner_of_a_temporary_table_is_spared_where_the_server_can_tell(
    session_factory, rested, ask
):
    # Gaps in the slots are what older servers get wrong.
    gap, plain, owner = session_factory(), session_factory(), session_factory()
    gap.close()
    owner.execute("CREATE TEMPORARY TABLE kept (id int)")
    run = reap(*rested())
    assert run.fate(plain) == ("signalled", None)
    can_tell = int(ask("SHOW server_version_num")[0][0]) >= 160000
    assert run.fate(owner) == (("spared", "temp_table") if can_tell else ("signalled", None))


def test_a_session_without_track_activities_is_spared(session_factory, rested):
    session = session_factory()
    session.execute("SET track_activities = off")
    assert reap(*rested()).fate(session) == ("spared", "track_activities_off")


def test_a_copy_in_progress_is_not_at_rest(address, application_name, rested, ask):
    client = RawClient(**address, application_name=application_name)
    try:
        client.send("CREATE TEMPORARY TABLE loaded (line text)")
        list(client.messages())
        client.send("COPY loaded FROM STDIN")
        # It waits for its client just like an idle session, so the wait event alone is no proof.
        waits = "SELECT state, wait_event FROM pg_stat_activity WHERE pid = %s"
        until(lambda: ask(waits, [client.pid]) == [("active", "ClientRead")])
        assert reap(*rested()).fate(client) == ("not_due", "active")
    finally:
        client.close()


def test_transactions_at_rest_are_spared_unless_asked_for(session_factory, rested, alive):
    open_, aborted = session_factory(), session_factory()
    open_.execute("BEGIN")
    aborted.execute("BEGIN")
    with pytest.raises(Exception, match="division by zero"):
        aborted.execute("SELECT 1 / 0")
    run = reap(*rested())
    assert run.fate(open_) == run.fate(aborted) == ("spared", "idle_in_transaction")
    assert reap(*rested(), "--idle-in-transaction-for", "1h").fate(open_) == (
        "not_due",
        "too_young",
    )
    run = reap(*rested(), "--idle-in-transaction-for", "0.3s")
    assert run.fate(open_) == run.fate(aborted) == ("signalled", None)
    assert not alive(open_)
    assert not alive(aborted)


def test_protected_applications_are_spared_and_ours_replace_the_default(
    session_factory, rested, settings, application_name
):
    psql, mine = session_factory(application_name="psql"), session_factory()
    arguments = rested()
    settings.CONN_GUARD = {"PROTECTED_APPLICATIONS": [f"{application_name}*"]}
    run = reap(
        *arguments[:2],
        "--application-name",
        "psql",
        "--application-name",
        f"{application_name}*",
        "--dry-run",
    )
    assert run.fate(mine) == ("spared", "protected_application")
    assert run.fate(psql) == ("would_signal", None)
    settings.CONN_GUARD = {}
    assert reap(*arguments[:2], "--application-name", "psql", "--dry-run").fate(psql) == (
        "spared",
        "protected_application",
    )


@pytest.mark.parametrize("stamp", ["", ":4711", ":4711:shop.views.cart"])
def test_an_exclusion_meets_a_name_with_and_without_its_stamp(
    session_factory, rested, application_name, stamp
):
    session = session_factory(application_name=f"{application_name}{stamp}")
    arguments = rested()
    for glob in (application_name, f"{application_name}*", f"{application_name}{stamp}"):
        assert reap(*arguments, "--exclude-application-name", glob).fate(session) == (
            "spared",
            "excluded",
        )
    assert (
        reap(*arguments[:2], "--application-name", application_name, "--dry-run").fate(session)[0]
        == "would_signal"
    )
    assert (
        reap(*arguments[:2], "--application-name", application_name.upper(), "--dry-run").sessions
        == {}
    )


# Output


def test_outcomes_name_every_session_once(session_factory, application_name, rested):
    session_factory(), session_factory()
    rested()
    policy = Policy(idle_for=timedelta(milliseconds=300), applications=(application_name,))
    with Reaper("default", policy, RunOptions(dry_run=True)) as reaper:
        report = reaper.reap()
    assert [each.action for each in report.outcomes] == [Action.WOULD_SIGNAL] * 2


def test_text_is_one_line_a_session_and_one_line_an_alias(session_factory, rested, capsys):
    session = session_factory()
    call_command("idle_reaper", *rested())
    heading, line, total = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["ACTION", "PID", "USER"]
    assert line.split()[:2] == ["signalled", str(session.pid)]
    assert total.startswith("default ")
    assert "  due 1  signalled 1  spared 0  gone 1  survivors 0  " in total
    assert "\x1b" not in line + total


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_while_many_sessions_are_acted_on(
    session_factory, rested, monkeypatch
):
    for many, shown in ((2, False), (1, True)):
        monkeypatch.setattr("conn_guard.management.commands.idle_reaper.BAR_ABOVE", many)
        session_factory(), session_factory()
        arguments, terminal, plain = rested(), Terminal(), io.StringIO()
        call_command("idle_reaper", *arguments, "--dry-run", stdout=io.StringIO(), stderr=plain)
        assert "#" not in plain.getvalue()
        call_command("idle_reaper", *arguments, stdout=io.StringIO(), stderr=terminal)
        bar = f"\r[{'#' * 40}] 2/2"
        assert (bar in terminal.getvalue()) is shown
        assert terminal.getvalue().endswith("\x1b[K") is shown  # and clears it away


def test_a_terminal_gets_colours_and_a_file_gets_none(session_factory, rested, monkeypatch):
    session_factory()
    arguments = (*rested(), "--dry-run")
    for stream, options, painted in (
        (Terminal(), {"force_color": True}, True),
        (io.StringIO(), {"force_color": True}, True),
        (Terminal(), {"no_color": True}, False),
        (io.StringIO(), {}, False),
    ):
        call_command("idle_reaper", *arguments, stdout=stream, stderr=io.StringIO(), **options)
        assert ("\x1b[" in stream.getvalue().splitlines()[-1]) is painted
        assert "\x1b" not in stream.getvalue().splitlines()[0]


def test_cron_hears_nothing_of_a_success(session_factory, rested, capsys):
    session_factory()
    call_command("idle_reaper", *rested(), verbosity=0)
    assert capsys.readouterr() == ("", "")


def test_metrics_are_those_of_the_report(session_factory, rested, tmp_path):
    session_factory()
    metrics = tmp_path / "reaper.prom"
    run = reap(*rested(), "--metrics-file", str(metrics))
    samples = dict(
        line.rsplit(" ", 1) for line in metrics.read_text().splitlines() if not line.startswith("#")
    )
    assert samples['conn_guard_reaper_last_run_signalled{alias="default"}'] == "1"
    assert (
        float(samples['conn_guard_server_slots_used{alias="default"}']) == run.summary["slots_used"]
    )
    stamp = samples['conn_guard_reaper_last_success_timestamp_seconds{alias="default"}']
    assert stamp == samples['conn_guard_reaper_last_run_timestamp_seconds{alias="default"}']


def test_metrics_go_through_a_link_and_into_a_pipe(tmp_path):
    link, file, pipe = tmp_path / "link", tmp_path / "reaper.prom", tmp_path / "pipe"
    link.symlink_to(file)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        reap("--dry-run", "--metrics-file", str(link))
        reap("--dry-run", "--metrics-file", str(pipe))
        read = os.read(reader, 65536).decode()
    finally:
        os.close(reader)
    assert (link.is_symlink(), pipe.is_fifo()) == (True, True)
    assert "conn_guard_server_slots_usable" in file.read_text()
    assert "conn_guard_server_slots_usable" in read


def test_metrics_that_can_not_be_moved_leave_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    run = reap("--dry-run", "--metrics-file", str(tmp_path / "reaper.prom"))
    assert (run.exit_code, list(tmp_path.iterdir())) == (1, [])


def test_metrics_of_a_dry_run_are_the_servers_and_leave_the_last_success_alone(
    session_factory, rested, tmp_path
):
    session_factory()
    arguments = (*rested(), "--metrics-file", str(metrics := tmp_path / "reaper.prom"))
    reap(*arguments, "--dry-run")
    text = metrics.read_text()
    assert 'conn_guard_server_slots_usable{alias="default"}' in text
    assert "conn_guard_reaper_" not in text
    reap(*arguments)
    success = re.findall(r"^conn_guard_reaper_last_success\S+ \S+$", metrics.read_text(), re.M)
    assert len(success) == 1
    reap(*arguments, "--dry-run")
    assert re.findall(r"^conn_guard_reaper_\S+ \S+$", metrics.read_text(), re.M) == success


def test_idle_sessions_of_which_none_is_due_are_counted_and_a_threshold_is_named(
    session_factory, rested, application_name, ask, monkeypatch, capsys
):
    session_factory(), session_factory()
    # The real ladder begins at 30 s, which is too long to wait for.
    monkeypatch.setattr(census, "SHORTER", {"0.3s": timedelta(seconds=0.3)})
    scope = rested()[2:]
    call_command("idle_reaper", *scope)
    stdout, stderr = capsys.readouterr()
    assert re.search(r"  idle 2 \(longest 0\.\ds\)  due 0  signalled 0  ", stdout)
    assert stderr == "default: none is due yet; --idle-for 0.3s would end 2\n"
    policy = Policy(idle_for=timedelta(minutes=10), applications=(f"{application_name}*",))
    with Reaper("default", policy, RunOptions(repeats=True)) as reaper:
        assert (report := reaper.reap()).idle == 2
        assert report.notes == []  # with --every, its numbers would differ each round
    assert reap("--idle-for", "0.3s", *scope).summary["signalled"] == 2


def test_call_command_raises_and_never_exits(monkeypatch):
    with pytest.raises(CommandError) as caught:
        call_command("idle_reaper", idle_for="banana")
    assert caught.value.returncode == 2


def test_json_is_one_object_a_line(session_factory, rested, capsys):
    session_factory()
    call_command("idle_reaper", *rested(), format="json")
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events == ["session", "summary"]
