"""Application names, databases and stamps: matched, reported and printed safely."""

from __future__ import annotations

import io

import pytest
from django.core.management import call_command

from conn_guard.sessions.stamp import NAME_BYTES, stamp
from tests.support.reaping import reap, skip_where_refused

NAMES = [
    "two\nlines",
    "tab\tand\rreturn",
    "\x1b[31mred\x1b]0;title\x07",
    'it\'s "quoted" \\ back',
    "😀 Größe",
    "per%cent %s %(x)s {brace}",
    "'; DROP TABLE x; --",
    "glob[a-z]*?",
    " padded ",
    "x" * NAME_BYTES,
    "é" * 40,
    "",
]
DATABASES = ['we"ird db', "two\nlines", "\x1b[31mred\x07", "%s 'x' \\", "😀" * 15]


def _shown(server, session):
    """Return the name as the server shows it: without non-ASCII characters, cut at 63 bytes."""
    return server.ask(
        "SELECT application_name FROM pg_stat_activity WHERE pid = %s", [session.pid]
    )[0][0]


def _literally(name):
    return "".join(f"[{each}]" if each in "*?[" else each for each in name)


def test_application_names_are_matched_and_reported_as_the_server_shows_them(server):
    sessions = [server.session(application_name=name) for name in NAMES]
    with server.alias():
        arguments = server.rested(*sessions)
        for session in sessions:
            name = _shown(server, session)
            run = reap(*arguments, "--dry-run", "--application-name", _literally(name))
            assert run.fate(session) == ("would_signal", None)
            assert {each["application_name"] for each in run.sessions.values()} == {name}
            run = reap(*arguments, "--dry-run", "--exclude-application-name", _literally(name))
            assert run.fate(session) == ("spared", "excluded")
            assert run.summary["spared"]["excluded"] == 1
        run = reap(*arguments)
    assert (run.exit_code, run.summary["gone"]) == (0, len(NAMES))
    assert {run.fate(session) for session in sessions} == {("signalled", None)}


def test_no_name_breaks_a_line_or_commands_a_terminal(server):
    sessions = [server.session(application_name=name) for name in NAMES]
    stdout, stderr = io.StringIO(), io.StringIO()
    with server.alias():
        call_command(
            "idle_reaper", *server.rested(*sessions), "--dry-run", stdout=stdout, stderr=stderr
        )
    lines = stdout.getvalue().splitlines()
    assert len(lines) == 1 + len(NAMES) + 1
    assert all(line.isprintable() for line in (*lines, *stderr.getvalue().splitlines()))


@pytest.mark.parametrize("name", ["shop", "x" * 40, "x" * 60, "x" * NAME_BYTES])
@pytest.mark.parametrize("view", ["", "shop.views.cart", "v" * 80])
def test_a_stamped_name_is_protected_by_the_name_without_its_stamp(server, settings, name, view):
    session = server.session(application_name=stamp(name, 4711, view))
    with server.alias():
        arguments = (*server.rested(session), "--dry-run")
        assert reap(*arguments).fate(session) == ("would_signal", None)
        assert reap(*arguments, "--application-name", name).fate(session) == ("would_signal", None)
        settings.CONN_GUARD = {"PROTECTED_APPLICATIONS": [name]}
        assert reap(*arguments).fate(session) == ("spared", "protected_application")


@pytest.mark.parametrize("name", DATABASES)
def test_a_database_of_an_odd_name_is_reaped_and_advised_about(server, name):
    skip_where_refused(server.ask, name)
    quoted = '"' + name.replace('"', '""') + '"'
    server.ask(f"CREATE DATABASE {quoted}")
    try:
        session, elsewhere = server.session(dbname=name), server.session()
        with server.alias(NAME=name):
            arguments = server.rested(session, elsewhere)
            stdout = io.StringIO()
            call_command("idle_reaper", *arguments, "--advise", stdout=stdout)
            server.ask(stdout.getvalue())
            stdout = io.StringIO()
            call_command(
                "idle_reaper", *arguments, "--dry-run", stdout=stdout, stderr=io.StringIO()
            )
            printed = stdout.getvalue().splitlines()
            assert len(printed) == 3
            assert all(line.isprintable() for line in printed)
            run = reap(*arguments)
        assert run.sessions[session.pid]["database"] == name
        assert run.fate(session) == ("signalled", None)
        assert set(run.sessions) & {elsewhere.pid} == set()
        setting = (
            "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
            " WHERE datname = %s"
        )
        assert server.ask(setting, [name]) == [(["idle_session_timeout=100ms"],)]
    finally:
        server.ask(f"DROP DATABASE {quoted}")


@pytest.mark.parametrize("role", ['o"ne', "two\nlines", "Upper", "%s", "😀" * 15])
def test_the_advice_for_a_role_of_an_odd_name_runs_as_it_is_printed(server, role):
    skip_where_refused(server.ask, role)
    quoted = '"' + role.replace('"', '""') + '"'
    server.ask(f"CREATE ROLE {quoted} LOGIN")
    try:
        with server.alias():
            stdout = io.StringIO()
            call_command("idle_reaper", database="own", user=role, advise=True, stdout=stdout)
        server.ask(stdout.getvalue())
        assert server.ask(
            "SELECT setconfig FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole WHERE"
            " rolname = %s",
            [role],
        ) == [(["idle_session_timeout=600000ms"],)]
    finally:
        server.ask(f"DROP ROLE {quoted}")
