"""The admin page on a real server, through Django's client."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

import html5lib
import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import connection, connections
from django.test import Client, override_settings

from conn_guard.contrib.admin.page import WORDS
from conn_guard.sessions import login
from conn_guard.sessions.policy import Verdict
from conn_guard.sessions.stop import Stop
from tests.postgres.admin_site import admin_project
from tests.postgres.admin_site.visit import PAGE, Operator, logged
from tests.support.own_server import own_server
from tests.support.polling import until
from tests.support.programs import free_port

pytestmark = pytest.mark.django_db(transaction=True)

ROLES = {"app": "LOGIN", "billing": "LOGIN", "limited": "LOGIN CONNECTION LIMIT 2"}


@pytest.fixture(scope="module", autouse=True)
def project(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock(), admin_project():
        yield


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with django_db_blocker.unblock(), own_server(roles=ROLES, max_connections=130) as server:
        yield server


@pytest.fixture
def server(server):
    with server.alias():
        yield server


@pytest.fixture
def operator():
    return Operator("view", "terminate")


def test_the_page_shows_slots_groups_and_sessions_with_the_verdicts(server, operator):
    idle = [server.session() for _ in range(3)]
    lock, foreign = server.session(), server.session("billing")
    lock.execute("SELECT pg_advisory_lock(1)")
    server.rested(*idle, lock, foreign)
    operator.look()
    assert operator.response.status_code == 200
    assert {operator.verdicts[each.pid] for each in idle} == {"idle"}
    assert operator.verdicts[lock.pid] == "advisory_lock"
    assert operator.verdicts[foreign.pid] == ""
    assert re.search(r"\d+ of 127 of the server&#x27;s slots are taken", operator.text)
    assert "3: would be ended" in operator.text
    assert "1: holds an advisory lock" in operator.text
    assert "SELECT" in operator.text
    assert "pg_advisory_lock(1)" not in operator.text
    assert "GRANT pg_read_all_stats TO app;" in operator.text  # billing's session is masked


def test_one_session_is_ended_after_a_question_and_logged(server, operator):
    victim, other = server.session(application_name="shop:view"), server.session()
    server.rested(victim, other)
    html5lib.HTMLParser(strict=True).parse(operator.look().text)
    operator.ask(victim)
    html5lib.HTMLParser(strict=True).parse(operator.text)
    assert operator.verdicts == {victim.pid: "idle"}
    assert server.alive(victim)
    assert operator.confirm() == [f"Signalled 1 session: pid {victim.pid}."]
    until(lambda: not server.alive(victim))
    assert server.alive(other)
    name = f"pid {victim.pid}, role app, application shop:view"
    assert logged() == [(str(victim.pid), name, f"Terminated on own: {name}.")]
    entry = apps.get_model("admin", "LogEntry").objects.get()
    assert entry.user == operator.user
    assert entry.content_type.app_label == "conn_guard_admin"


def test_a_group_is_ended_but_for_what_the_judge_spares(server, operator):
    idle, listener = [server.session() for _ in range(3)], server.session()
    listener.execute("LISTEN channel")
    server.rested(*idle, listener)
    operator.look()
    (tokens,) = re.findall(r'<button [^>]*name="_selected_action" value="([\d: ]+)"', operator.text)
    operator.post(tokens)
    assert operator.verdicts == {listener.pid: "listen", **{each.pid: "idle" for each in idle}}
    assert "its last statement was LISTEN" in operator.text
    later = server.session()
    server.rested(later)
    (said,) = operator.confirm()
    assert said.startswith("Signalled 3 sessions: pid ")
    until(lambda: not any(map(server.alive, idle)))
    assert server.alive(listener)
    assert server.alive(later)
    assert {each for each, _, _ in logged()} == {str(each.pid) for each in idle}


def test_a_session_that_was_used_after_the_question_is_spared(server, operator):
    session = server.session()
    server.rested(session)
    operator.ask(session)
    session.execute("SELECT 1")
    server.rested(session)
    (said,) = operator.confirm()
    assert said == f"Spared 1 session (was used in the meantime): pid {session.pid}."
    assert server.alive(session)
    assert logged() == []


def test_a_second_answer_ends_nothing_more(server, operator):
    session = server.session()
    server.rested(session)
    operator.ask(session)
    question = operator.response
    operator.confirm()
    until(lambda: not server.alive(session))
    operator.response = question
    assert operator.confirm() == ["1 of the chosen sessions had ended before."]
    assert len(logged()) == 1


def test_what_a_forged_answer_names_is_judged_like_anything_else(server, operator):
    lock, foreign, other = server.session(), server.session("billing"), server.session()
    lock.execute("SELECT pg_advisory_lock(1)")
    server.rested(lock, foreign, other)
    operator.look()
    pid, start, change = operator.token(other).split(":")
    tokens = [
        operator.token(lock),
        f"{foreign.pid}::",
        f"{pid}:{int(start) + 1}:{change}",
        f"{pid}:{start}:{int(change) - 1}",
    ]
    operator.post(tokens, post="yes")
    for each in (lock, foreign, other):
        assert server.alive(each)
    assert logged() == []
    operator.look()
    for sentence in (
        f"Spared 1 session (not of this alias&#x27;s role and database): pid {foreign.pid}.",
        f"Spared 1 session (holds an advisory lock): pid {lock.pid}.",
        f"Spared 1 session (was used in the meantime): pid {other.pid}.",
        "1 of the chosen sessions had ended before.",
    ):
        assert sentence in operator.text
    operator.post([f"{foreign.pid}::"])
    assert "None of these sessions would be ended." in operator.text
    assert "not of this alias&#x27;s role and database" in operator.text
    for wrong in ("x", "1", "1:2", f"{pid}:{10**30}:1", "1:a:b"):
        operator.look().post([wrong])
        assert operator.response.status_code == 400


def test_a_user_without_the_permission_reads_and_ends_nothing(server):
    session = server.session()
    server.rested(session)
    reader = Operator("view").look()
    assert reader.verdicts[session.pid] == "idle"
    assert "_selected_action" not in reader.text
    ((start, change),) = server.ask(
        "SELECT (extract(epoch FROM backend_start) * 1000000)::bigint,"
        " (extract(epoch FROM state_change) * 1000000)::bigint"
        " FROM pg_stat_activity WHERE pid = %s",
        [session.pid],
    )
    for more in ({}, {"post": "yes"}):
        reader.look().post(f"{session.pid}:{start}:{change}", **more)
        assert reader.response.status_code == 403
    assert server.alive(session)
    assert logged() == []


def test_the_page_is_for_staff_with_a_permission(server):
    assert Client().get(PAGE).status_code == 302
    assert Operator().look().response.status_code == 403
    User.objects.all().delete()
    ender = Operator("terminate")
    assert ender.look().response.status_code == 200
    assert "Sessions" in ender.client.get("/admin/").content.decode()


def test_neither_a_get_nor_a_post_without_the_token_of_csrf_ends_anything(server, operator):
    session = server.session()
    server.rested(session)
    operator.look()
    asked = {"action": "terminate", "post": "yes", "_selected_action": operator.token(session)}
    operator.look(**asked)
    assert operator.response.status_code == 200
    response = operator.client.post(f"{PAGE}?alias=own", asked)
    assert response.status_code == 403
    assert server.alive(session)


def test_an_answer_leads_back_to_the_page_and_nowhere_else(server, operator):
    session = server.session()
    server.rested(session)
    operator.look()
    address = "?alias=own&state=idle&o=pid&next=https://evil.example&_changelist_filters=//evil"
    operator.post(operator.token(session), path=f"{PAGE}{address}", post="yes")
    assert operator.response["Location"] == f"{PAGE}?alias=own&state=idle&o=pid"
    operator.look().post([])
    assert urlsplit(operator.response["Location"]).netloc == ""
    operator.look()
    assert "Select sessions to terminate first." in operator.text


def test_a_refresh_leaves_the_messages_for_the_page(server, operator):
    operator.look().post([])
    refreshed = operator.client.get(PAGE, {"alias": "own"}, HTTP_X_CONN_GUARD_REFRESH="1")
    assert refreshed.content.startswith(b'<div id="conn-guard-live">')
    assert b"Select sessions" not in refreshed.content
    assert "Select sessions to terminate first." in operator.look().text


def test_filters_and_order_choose_what_is_shown(server, operator):
    shop, worker = server.session(), server.session(application_name="<b>worker</b>:1:view")
    nameless, held = server.session(application_name=""), server.session()
    held.execute("BEGIN")
    server.rested(shop, worker, nameless, held)
    assert set(operator.look(application="shop").verdicts) == {shop.pid, held.pid}
    assert set(operator.look(application="shop", state="idle").verdicts) == {shop.pid}
    assert set(operator.look(application="<b>worker</b>").verdicts) == {worker.pid}
    assert "<b>worker" not in operator.text
    assert set(operator.look(application="(no application_name)").verdicts) == {nameless.pid}
    assert operator.look(state="idle in transaction").verdicts == {held.pid: "idle_in_transaction"}
    pids = list(operator.look(o="pid", state="idle").verdicts)
    assert pids == sorted(pids)
    assert list(operator.look(o="-pid", state="idle").verdicts) == pids[::-1]
    usual = list(operator.look(state="idle").verdicts)
    assert list(operator.look(o="wrong", p="wrong", state="idle").verdicts) == usual
    for column in ("state", "application", "role", "database", "client", "last", "for", "reaper"):
        assert set(operator.look(o=column).verdicts) >= set(pids)
    operator.look(application="none")
    assert operator.text.count("No session matches.") == 2


def test_more_than_a_hundred_sessions_have_pages(server, operator):
    crowd = [server.session(application_name=f"app-{number:03}") for number in range(105)]
    first = operator.look(o="application").verdicts
    assert len(first) == 100
    assert "in 56 smaller groups" in operator.text  # 105 and the observer's, less 50
    (following,) = set(re.findall(r'<a href="(\?[^"]*p=2)">2</a>', operator.text))
    operator.response = operator.client.get(PAGE + following.replace("&amp;", "&"))
    second = operator.verdicts
    assert len(second) == 6
    assert set(first) | set(second) > {each.pid for each in crowd}


def test_another_site_has_the_page_at_its_own_address(server):
    session = server.session()
    server.rested(session)
    operator = Operator("terminate", path="/operations/conn_guard_admin/session/")
    operator.ask(session)
    assert 'href="/operations/' in operator.text
    assert 'href="/admin/' not in operator.text
    assert operator.confirm() == [f"Signalled 1 session: pid {session.pid}."]
    assert operator.response.redirect_chain[0][0].startswith(operator.path)


@pytest.mark.parametrize(
    ("alias", "sentence"),
    [
        ("none", "There is no alias &#x27;none&#x27; in DATABASES."),
        ("lite", "DATABASES[&#x27;lite&#x27;] is no PostgreSQL"),
    ],
)
def test_an_alias_that_has_no_sessions_is_said_so(operator, alias, sentence):
    operator.look(alias=alias)
    assert operator.response.status_code == 200
    assert sentence in operator.text
    operator.look().post("1:1:1", path=f"{PAGE}?alias={alias}", post="yes")
    assert operator.response["Location"] == PAGE


def test_a_wrong_setting_is_said_and_ends_nothing(server, operator):
    session = server.session()
    server.rested(session)
    operator.look()
    with override_settings(CONN_GUARD={"REAP_IDLE_FOR": "ten"}):
        operator.post(operator.token(session), post="yes")
        operator.look()
    assert "CONN_GUARD[&#x27;REAP_IDLE_FOR&#x27;] is &#x27;ten&#x27;, not a" in operator.text
    assert server.alive(session)


def test_a_server_that_is_away_is_one_sentence(server, operator, monkeypatch):
    session = server.session()
    server.rested(session)
    operator.ask(session)
    question = operator.response
    with monkeypatch.context() as patch:
        patch.setitem(connections.settings["own"], "PORT", str(free_port()))
        patch.setattr(Stop, "sleep", lambda *_: pytest.fail("The page tries to log in again."))
        operator.look()
        assert operator.response.status_code == 200
        assert "own: can&#x27;t connect: " in operator.text
        operator.response = question
        operator.confirm()
        assert operator.response.status_code == 200
        assert "own: can&#x27;t connect: " in operator.text
    assert operator.look().verdicts[session.pid] == "idle"


def test_a_server_that_does_not_answer_keeps_the_page_for_connect_timeout(
    server, operator, monkeypatch
):
    monkeypatch.setattr(login, "ONE_TRY_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        monkeypatch.setitem(connections.settings["own"], "PORT", port)
        operator.look()
    assert "own: can&#x27;t connect: " in operator.text
    assert "timeout" in operator.text


def test_a_role_without_a_slot_is_said(server, operator, monkeypatch):
    full = [server.session("limited") for _ in range(2)]
    server.rested(*full)
    monkeypatch.setitem(connections.settings["own"], "USER", "limited")
    operator.look()
    assert "too many connections for role" in operator.text
    with server.alias("door"):
        operator.look()
        assert "not judged" in operator.text
        assert "GRANT pg_read_all_stats, pg_signal_backend TO app;" in operator.text
        operator.post([f"{each.pid}::" for each in full], post="yes")
        assert "No session can be ended: role app may not see 2" in operator.text
    assert all(map(server.alive, full))


def test_where_the_admins_own_database_is_away_the_page_says_so(server, operator, monkeypatch):
    is_atomic = True
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", is_atomic)
    assert operator.look().response.status_code == 200
    connection.close()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "PORT", str(free_port()))
        operator.look()
    assert operator.response.status_code == 503
    assert "The database of the admin doesn&#x27;t answer" in operator.text
    assert operator.look().response.status_code == 200


def test_a_session_of_the_page_that_ends_leaves_a_log_of_what_was_tried(
    server, operator, monkeypatch
):
    session = server.session()
    server.rested(session)
    operator.ask(session)
    monkeypatch.setattr(
        "conn_guard.sessions.server.PREPARE_SIGNAL",
        "SELECT pg_terminate_backend(pg_backend_pid())",
    )
    lost, failed = operator.confirm()
    assert lost.startswith("own: the signals failed: ")
    assert failed.startswith("Failed to signal 1 session (the answer was lost")
    ((_, _, message),) = logged()
    assert message.startswith(f"Tried to terminate on own: pid {session.pid}, ")


def test_the_signals_before_the_pages_session_ended_are_logged_and_told(
    server, operator, signals_until_lost
):
    sessions = {each.pid: each for each in (server.session() for _ in range(3))}
    server.rested(*sessions.values())
    operator.ask(*sessions.values())
    lost, *told = operator.confirm()
    assert lost.startswith("own: the signals failed: ")
    order = signals_until_lost
    (left,) = set(sessions) - set(order)
    assert told == [
        f"Signalled 1 session: pid {order[0]}.",
        "Failed to signal 1 session (the answer was lost, so it may have been signalled): pid"
        f" {order[1]}.",
        f"Did not signal 1 session (the page's own session had ended): pid {left}.",
    ]
    assert [message.split(",")[0] for _, _, message in logged()] == [
        f"Terminated on own: pid {order[0]}",
        f"Tried to terminate on own: pid {order[1]}",
    ]
    assert server.alive(sessions[left])


def test_a_role_that_lost_its_rights_after_the_question_ends_nothing(server, operator, monkeypatch):
    session = server.session()
    server.rested(session)
    operator.ask(session)
    lost = ("may not see 1", ["pg_read_all_stats"])
    monkeypatch.setattr("conn_guard.sessions.reaper.missing_rights", lambda *_: lost)
    (said,) = operator.confirm()
    assert said.startswith("own: role app may not see 1 of the sessions in scope")
    assert server.alive(session)


def test_a_log_that_can_not_be_written_is_said(server, operator, caplog):
    session = server.session(application_name="shop")
    server.rested(session)
    operator.ask(session)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE django_admin_log RENAME TO away")
    try:
        said = operator.confirm()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO django_admin_log")
    assert said[0].startswith("The admin's log could not be written")
    assert f"Terminated on own: pid {session.pid}, role app, application shop." in caplog.text


def test_each_verdict_has_words():
    assert set(WORDS) == set(Verdict)
