"""The reaper against real sessions: whom it ends and whom it spares, each by the real thing."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import DataError, connections, transaction

from conn_guard.sessions.policy import Policy, Verdict, judge
from conn_guard.sessions.reaper import Orders, Reaper
from conn_guard.sessions.report import Action
from conn_guard.sessions.server import (
    BEGIN_NOTE,
    READ_NOTE,
    SIGNAL,
    InTransactionError,
    Server,
    _signal_parameters,
)
from conn_guard.sessions.session import State
from tests.support.polling import until
from tests.support.reaping import RawClient, new_role, reap

# With transaction=False every test would run inside an atomic block, where the reaper refuses to
# work.
pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture
def alive(ask):
    """Return a function that tells whether a session is still there."""
    return lambda session: bool(ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [session.pid]))


@pytest.fixture
def rested(ask, application_name):
    """Return a function that waits until every session of the test rests for 0.3 s, and gives what
    to reap by.
    """

    def wait() -> tuple[str, ...]:
        until(
            lambda: ask(
                "SELECT min(clock_timestamp() - coalesce(state_change, backend_start)) > interval"
                " '0.35 s' FROM pg_stat_activity WHERE application_name LIKE %s",
                [f"{application_name}%"],
            )[0][0]
        )
        return ("--idle-for", "0.3s", "--application-name", f"{application_name}*")

    return wait


@pytest.fixture
def address():
    """Where the test server is, for a client that speaks by hand."""
    settings = connections["default"].settings_dict
    if settings["PASSWORD"]:
        pytest.skip("the client by hand knows no password")
    return {
        "host": settings["HOST"] or "127.0.0.1",
        "port": int(settings["PORT"] or 5432),
        "user": settings["USER"],
        "database": settings["NAME"],
    }


def test_a_session_at_rest_is_ended_and_gone(session_factory, rested, alive):
    session = session_factory()
    run = reap(*rested())
    assert run.exit_code == 0
    assert run.fate(session) == ("signalled", None)
    assert not alive(session)
    assert run.summary | {"seconds": 0, "slots_used": 0, "slots_total": 0} == {
        "event": "summary",
        "alias": "default",
        "candidates": 1,
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


def test_a_dry_run_shows_the_same_and_ends_nobody(session_factory, rested, alive):
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


# Who is spared


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
        # It waits for its client just like a session at rest, so the wait alone is no proof.
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


# The statement that signals


@pytest.fixture
def server():
    server = Server("default")
    yield server
    server.close()


@pytest.fixture
def listed(server, application_name):
    """Return a function that gives the test's only session as the reaper lists it."""

    def find():
        (session,) = (
            each for each in server.list_sessions() if each.application_name == application_name
        )
        return session

    return find


def test_a_session_that_moved_since_listed_is_spared(session_factory, server, listed, alive):
    session = session_factory()
    before = listed()
    session.execute("SELECT 1")
    assert server.signal([before]) == [False]
    assert alive(session)
    assert server.signal([listed()]) == [True]
    until(lambda: not alive(session))


def test_a_session_that_wakes_between_listing_and_signal_is_reported_as_moved_on(
    session_factory, rested, alive, monkeypatch
):
    one, two = session_factory(), session_factory()
    list_sessions = Server.list_sessions

    def and_then_wake(self):
        sessions = list_sessions(self)
        one.execute("SELECT 'awake'")
        return sessions

    arguments = rested()
    monkeypatch.setattr(Server, "list_sessions", and_then_wake)
    run = reap(*arguments)
    assert run.fate(one) == ("spared", "moved_on")
    assert run.fate(two) == ("signalled", None)
    assert (run.summary["candidates"], run.summary["spared"]) == (2, {"moved_on": 1})
    assert alive(one)


def test_a_pid_that_was_reused_is_spared(session_factory, server, listed, alive):
    session = session_factory()
    now = listed()
    # Whoever had the pid before started earlier and rested just as long.
    before = replace(now, backend_start=now.backend_start - timedelta(microseconds=1))
    assert server.signal([before]) == [False]
    assert alive(session)


def test_a_transaction_that_began_unseen_is_spared(session_factory, server, listed, alive):
    session = session_factory()
    session.execute("BEGIN")
    claimed = replace(listed(), state=listed().state.IDLE)
    assert server.signal([claimed]) == [False]
    assert alive(session)


def test_a_session_that_still_sends_its_answer_is_spared(
    address, application_name, ask, server, listed, alive
):
    """The state says idle as soon as the answer is formed; until the client has read it, the wait
    event says otherwise.
    """
    client = _sending(address, application_name, ask)
    try:
        session = listed()
        assert (session.state, session.waits_for_client) == (State.IDLE, False)
        policy = Policy(idle_for=timedelta(0), login_role=session.user, database=session.database)
        assert judge(session, policy) is Verdict.ACTIVE
        assert server.signal([session]) == [False]
        assert alive(client)
    finally:
        client.close()


def _sending(address, application_name, ask):
    """Return a client that reads nothing, with an answer of the very size at which the server is
    idle and still sends.
    """
    for _ in range(8):
        # What fits into the buffers between the two is soon at rest, what is longer stays active:
        # the edge is wanted.
        fits, too_long = 0, 160_000
        while too_long - fits > 1:
            rows = (fits + too_long) // 2
            client = RawClient(**address, application_name=application_name, receive_buffer=4096)
            client.send(f"SELECT repeat('x', 90) FROM generate_series(1, {rows})")
            seen = until(lambda pid=client.pid: _settled(ask, pid))
            if seen == ("idle", "ClientWrite"):
                return client
            client.close()
            fits, too_long = (rows, too_long) if seen[0] == "idle" else (fits, rows)
    return pytest.fail("no answer was of the size at which a session is idle and still sends")


def _settled(ask, pid):
    rows = ask(
        "SELECT state, wait_event FROM pg_stat_activity WHERE pid = %s AND query <> ''", [pid]
    )
    return rows[0] if rows and rows[0][1] else None


def test_each_victim_of_a_message_is_looked_at_afresh(
    session_factory, server, application_name, alive, ask
):
    """Whoever wakes while another is signalled is spared, because each has a transaction of its
    own.
    """
    sessions = {session.pid: session for session in (session_factory(), session_factory())}
    victim, other = (
        each for each in server.list_sessions() if each.application_name == application_name
    )
    session = sessions[other.pid]
    ((own,),) = server._rows("SELECT pg_backend_pid()")
    parameters = ["1:", *_signal_parameters(victim), *_signal_parameters(other)]

    def wake():
        until(
            lambda: ask(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND pid = %s", [own]
            )
        )
        session.execute("SELECT 'awake'")

    thread = threading.Thread(target=wake)
    thread.start()
    server._run(f"{BEGIN_NOTE}{SIGNAL}; SELECT pg_sleep(0.5){SIGNAL}", parameters)
    thread.join()
    assert server._rows(READ_NOTE) == [("1:yn",)]
    assert alive(session)


def test_a_refusal_takes_no_answer_from_those_before_and_gives_none_to_those_after(
    session_factory, server, application_name
):
    for _ in range(12):
        session_factory()
    listed = [each for each in server.list_sessions() if each.application_name == application_name]
    # A pid that is no number of the server's raises an error where a superuser's session would.
    broken = replace(listed[7], pid=2**40)
    answers = server.signal([*listed[:7], broken, *listed[8:]])
    assert [answer is True for answer in answers] == [True] * 7 + [False] + [True] * 4
    assert isinstance(answers[7], DataError)


def test_a_message_that_is_refused_as_a_whole_repeats_no_old_answers(
    session_factory, server, application_name, monkeypatch
):
    session_factory(), session_factory()
    one, two = (
        each for each in server.list_sessions() if each.application_name == application_name
    )
    assert server.signal([one]) == [True]
    monkeypatch.setattr("conn_guard.sessions.server.BEGIN_NOTE", f"SELECT 1 / 0; {BEGIN_NOTE}")
    (answer,) = server.signal([two])
    assert isinstance(answer, DataError)


def test_a_session_that_has_gone_is_no_failure(session_factory, server, listed, alive):
    session = session_factory()
    gone = listed()
    session.close()
    until(lambda: not alive(session))
    assert server.signal([gone]) == [False]


def test_a_signal_refuses_to_be_sent_inside_a_transaction(session_factory, server, listed, alive):
    session = session_factory()
    server._connection.set_autocommit(False)
    with pytest.raises(InTransactionError):
        server.signal([listed()])
    assert alive(session)


def test_the_reaper_refuses_to_run_inside_an_atomic_block(session_factory, rested, alive):
    session = session_factory()
    arguments = rested()
    with transaction.atomic():
        run = reap(*arguments)
    assert run.exit_code == 2
    assert "inside transaction.atomic()" in run.error
    assert run.sessions == {}
    assert alive(session)


# Scope and brakes


def test_a_filter_that_matches_nobody_ends_nobody(session_factory, rested, alive):
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


def test_below_the_threshold_of_slots_nobody_is_ended(session_factory, rested, alive):
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
    with Reaper("default", policy, Orders(stays=True)) as first:
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


def test_a_dry_run_takes_no_lock(rested, session_factory, application_name):
    session = session_factory()
    policy = Policy(idle_for=timedelta(hours=1), applications=(f"{application_name}*",))
    with Reaper("default", policy, Orders(stays=True)) as first:
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
    monkeypatch.setattr("conn_guard.sessions.reaper.CONNECT_FOR", timedelta(0))
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


# What an alias's settings must not change


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


def test_nothing_is_sent_but_what_this_room_holds(session_factory, ask, application_name, rested):
    """No receiver of connection_created runs on the reaper's session, and its own settings are in
    force.
    """
    from django.db.backends.signals import connection_created

    heard: list[object] = []

    def hear(**kwargs: object) -> None:
        heard.append(kwargs)

    connection_created.connect(hear)
    try:
        with Reaper("default", Policy(idle_for=timedelta(hours=1)), Orders(stays=True)) as reaper:
            reaper.reap()
            assert heard == []
            shown = reaper._server._rows(
                "SELECT current_setting('search_path'), current_setting('statement_timeout'),"
                " current_setting('idle_session_timeout'), current_setting('application_name')"
            )
            assert shown == [("pg_catalog", "10s", "0", "conn_guard:idle_reaper")]
    finally:
        connection_created.disconnect(hear)


@pytest.mark.parametrize(
    "name", ['o"ne', "two\nlines", "'; DROP TABLE x --", "per%cent %s", "😀" * 14, "\x1b[31mred"]
)
def test_odd_names_are_reported_as_they_are(session_factory, rested, ask, name, application_name):
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


def test_outcomes_name_every_session_once(session_factory, application_name, rested):
    session_factory(), session_factory()
    rested()
    policy = Policy(idle_for=timedelta(milliseconds=300), applications=(application_name,))
    with Reaper("default", policy, Orders(dry_run=True)) as reaper:
        report = reaper.reap()
    assert [each.action for each in report.outcomes] == [Action.WOULD_SIGNAL] * 2


def test_text_is_one_line_a_session_and_one_line_an_alias(session_factory, rested, capsys):
    session = session_factory()
    call_command("idle_reaper", *rested())
    heading, line, total = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["ACTION", "PID", "USER"]
    assert line.split()[:2] == ["signalled", str(session.pid)]
    assert total.startswith("default ")
    assert "  idle 1  signalled 1  spared 0  gone 1  survivors 0  " in total
    assert "\x1b" not in line + total


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_while_many_sessions_are_acted_on(
    session_factory, rested, monkeypatch
):
    for many, shown in ((2, False), (1, True)):
        monkeypatch.setattr("conn_guard.management.commands.idle_reaper.WORTH_A_BAR", many)
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
    run = reap(*rested(), "--metrics-file", str(metrics), "--dry-run")
    assert not metrics.exists()
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


def test_call_command_raises_and_never_exits(monkeypatch):
    with pytest.raises(CommandError) as caught:
        call_command("idle_reaper", idle_for="banana")
    assert caught.value.returncode == 2


def test_json_is_one_object_a_line(session_factory, rested, capsys):
    session_factory()
    call_command("idle_reaper", *rested(), format="json")
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events == ["session", "summary"]
