"""The rights of the reaper's role: which sessions it sees and may signal."""

from __future__ import annotations

import io
import re
from contextlib import contextmanager

import pytest
from django.core.management import call_command

from tests.support.own_server import own_server
from tests.support.reaping import reap, skip_where_refused

ROLES = {"app": "LOGIN", "billing": "LOGIN", "boss": "LOGIN SUPERUSER"}


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with django_db_blocker.unblock(), own_server(roles=ROLES) as server:
        yield server


@pytest.fixture
def reaper_role(server):
    """Return a function that makes a reaper's role for a block, and an alias of that role."""

    @contextmanager
    def make(*grants: str, attributes: str = "LOGIN"):
        server.ask(f"CREATE ROLE reaper {attributes}")
        for each in grants:
            server.ask(f"GRANT {each} TO reaper")
        try:
            with server.alias(USER="reaper"):
                yield
        finally:
            server.ask("DROP ROLE reaper")

    return make


def test_the_applications_own_role_needs_no_grant(server):
    own, others = server.session(), server.session("billing")
    with server.alias():
        run = reap(*server.rested(own, others))
    assert (run.exit_code, run.stderr.count("\n")) == (0, 1)  # the short threshold
    assert run.fate(own) == ("signalled", None)
    assert run.fate(others) == (None, None)
    assert not server.alive(own)
    assert server.alive(others)


def test_hidden_rows_outside_the_scope_are_no_fault_but_make_the_slots_a_bound(server, tmp_path):
    others = server.session("billing")
    metrics = tmp_path / "reaper.prom"
    stdout = io.StringIO()
    with server.alias():
        arguments = server.rested(others)
        assert reap(*arguments, "--metrics-file", str(metrics)).summary["slots_exact"] is False
        call_command("idle_reaper", *arguments, stdout=stdout, stderr=io.StringIO())
    assert "  slots ≤" in stdout.getvalue()
    hidden = re.search(
        r'^conn_guard_server_sessions_hidden{alias="own"} (\d+)$', metrics.read_text(), re.MULTILINE
    )
    assert hidden is not None
    assert int(hidden[1]) >= 2  # the observer's is the other


def test_a_member_of_the_applications_role_needs_no_other_grant(server, reaper_role):
    session = server.session()
    with reaper_role("app"):
        assert reap(*server.rested(session), "--user", "app").fate(session) == ("signalled", None)


@pytest.mark.parametrize(
    ("grants", "missing"),
    [
        (["pg_signal_backend"], "pg_read_all_stats"),
        (["pg_read_all_stats"], "pg_signal_backend"),
        (["pg_monitor"], "pg_signal_backend"),
        ([], "pg_read_all_stats, pg_signal_backend"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_role_that_lacks_a_right_ends_no_session_and_names_the_grant_that_cures_it(
    server, reaper_role, grants, missing, dry_run
):
    session = server.session()
    with reaper_role(*grants):
        arguments = (*server.rested(session), "--user", "app")
        run = reap(*arguments, dry_run=dry_run)
        assert run.exit_code == 4
        assert run.error.endswith(f"Let an administrator run: GRANT {missing} TO reaper;")
        assert [(event["alias"], event["exit"], event["message"]) for event in run.errors] == [
            ("own", 4, run.error)
        ]
        assert (run.sessions, run.summaries) == ({}, {})
        assert server.alive(session)
        server.ask(run.error.partition("run: ")[2])
        assert reap(*arguments).fate(session) == ("signalled", None)


@pytest.mark.parametrize("reader", ["pg_read_all_stats", "pg_monitor"])
def test_a_role_with_both_rights_reaps_every_role_it_names(server, reaper_role, reader):
    app, billing = server.session(), server.session("billing")
    with reaper_role("pg_signal_backend", reader):
        run = reap(*server.rested(app, billing), "--user", "app", "--user", "billing")
        assert run.fate(app) == run.fate(billing) == ("signalled", None)
        assert (run.exit_code, run.summary["slots_exact"], run.summary["gone"]) == (0, True, 2)


@pytest.mark.parametrize(
    "grants", [["pg_signal_backend", "pg_read_all_stats"], ["pg_monitor"], ["app"], []], ids=str
)
def test_a_right_that_the_role_does_not_inherit_is_none_and_the_printed_sql_lets_it_inherit(
    server, reaper_role, grants
):
    session = server.session()
    with reaper_role(*grants, attributes="LOGIN NOINHERIT"):
        arguments = (*server.rested(session), "--user", "app")
        run = reap(*arguments)
        assert run.exit_code == 4
        assert server.alive(session)
        # 14 lets a member see what it doesn't inherit, but not signal.
        sees = server.major == 14 and {"pg_read_all_stats", "pg_monitor"} & set(grants)
        grant = f"GRANT {'' if sees else 'pg_read_all_stats, '}pg_signal_backend TO reaper"
        cure = (
            f"{grant} WITH INHERIT TRUE;"
            if server.major >= 16
            else f"ALTER ROLE reaper INHERIT; {grant};"
        )
        assert run.error.endswith(f"Let an administrator run: {cure}")
        server.ask(run.error.partition("run: ")[2])
        assert reap(*arguments).fate(session) == ("signalled", None)


def test_a_grant_that_is_not_inherited_is_cured_by_one_that_is(server, reaper_role):
    """From PostgreSQL 16 on each grant has its own INHERIT, which a second plain GRANT keeps."""
    if server.major < 16:
        pytest.skip("GRANT ... WITH INHERIT came with PostgreSQL 16")
    session = server.session()
    with reaper_role("pg_read_all_stats"):
        server.ask("GRANT pg_signal_backend TO reaper WITH INHERIT FALSE")
        arguments = (*server.rested(session), "--user", "app")
        run = reap(*arguments)
        assert run.exit_code == 4
        assert run.error.endswith("run: GRANT pg_signal_backend TO reaper WITH INHERIT TRUE;")
        server.ask("GRANT pg_signal_backend TO reaper")
        assert reap(*arguments).exit_code == 4
        server.ask(run.error.partition("run: ")[2])
        assert reap(*arguments).fate(session) == ("signalled", None)


def test_a_right_that_comes_through_a_role_that_inherits_nothing_is_cured_too(server, reaper_role):
    session = server.session()
    server.ask("CREATE ROLE operators NOINHERIT")
    server.ask("GRANT pg_signal_backend, pg_read_all_stats TO operators")
    try:
        with reaper_role("operators"):
            arguments = (*server.rested(session), "--user", "app")
            run = reap(*arguments)
            assert run.exit_code == 4
            server.ask(run.error.partition("run: ")[2])
            assert reap(*arguments).fate(session) == ("signalled", None)
    finally:
        server.ask("DROP ROLE operators")


def test_a_reaper_without_sessions_of_its_own_is_told_to_name_a_role(server, reaper_role):
    session = server.session()
    with reaper_role("pg_signal_backend", "pg_read_all_stats"):
        run = reap(*server.rested(session))
    assert run.exit_code == 0
    assert (
        "role reaper has no other session here; name the application's role with --user"
        in run.stderr
    )
    assert server.alive(session)


def test_a_member_that_named_a_superuser_is_refused_that_one_signal(server, reaper_role):
    """No grant reaches a superuser, so its session doesn't count as one that a grant would cure."""
    session, boss = server.session(), server.session("boss")
    with reaper_role("app", "pg_read_all_stats"):
        run = reap(*server.rested(session, boss), "--user", "app", "--user", "boss")
    assert (run.exit_code, run.fate(session), run.fate(boss)) == (
        3,
        ("signalled", None),
        ("failed", "permission_denied"),
    )


def test_superusers_are_spared_and_the_rest_go_on(server, reaper_role):
    first, boss, last = server.session(), server.session("boss"), server.session("billing")
    with reaper_role("pg_signal_backend", "pg_read_all_stats"):
        run = reap(*server.rested(first, boss, last), "--user", "*")
    assert run.fate(first) == run.fate(last) == ("signalled", None)
    assert run.fate(boss) == ("spared", "superuser")
    assert run.exit_code == 0


def test_a_superuser_that_was_named_is_a_refused_signal_and_the_rest_go_on(server, reaper_role):
    first, boss, last = server.session(), server.session("boss"), server.session()
    with reaper_role("pg_signal_backend", "pg_read_all_stats"):
        run = reap(*server.rested(first, boss, last), "--user", "app", "--user", "boss")
    assert run.exit_code == 3
    assert run.fate(first) == run.fate(last) == ("signalled", None)
    assert run.fate(boss) == ("failed", "permission_denied")
    assert (run.summary["signalled"], run.summary["failed"], run.summary["gone"]) == (2, 1, 2)
    assert server.alive(boss)


def test_an_application_that_is_superuser_reaps_its_own_and_no_other_superuser(server):
    """CVAT's compose file makes the application's role the server's superuser."""
    own, other = server.session("boss"), server.session("postgres")
    with server.alias(USER="boss"):
        arguments = server.rested(own, other)
        run = reap(*arguments, "--user", "*")
        assert run.fate(own) == ("signalled", None)
        assert run.fate(other) == ("spared", "superuser")
        own = server.session("boss")
        run = reap(*server.rested(own))
    assert set(run.sessions) > {own.pid}
    assert run.fate(own) == ("signalled", None)
    assert server.alive(other)


def test_hidden_sessions_that_a_name_spares_are_no_fault(server, reaper_role):
    """A hidden session spared by name is no fault; a network can't be judged on a hidden row."""
    admin, named = (
        server.session(application_name="psql"),
        server.session(application_name="keep-me"),
    )
    with reaper_role("pg_signal_backend"):
        arguments = (*server.rested(admin, named), "--user", "app")
        assert reap(*arguments, "--exclude-application-name", "keep-*").exit_code == 0
        assert reap(*arguments, "--application-name", "psql").exit_code == 0
        assert reap(*arguments, "--exclude-user", "app").exit_code == 0
        assert reap(*arguments, "--client", "10.0.0.0/8").exit_code == 4
        assert reap(*arguments, "--any-database").exit_code == 4
    assert server.alive(admin)
    assert server.alive(named)


@pytest.fixture
def role_setting(server):
    """Return a function that sets a default of the role app until the test ends."""
    yield lambda setting: server.ask(f"ALTER ROLE app SET {setting}")
    server.ask("ALTER ROLE app RESET ALL")


def test_a_login_role_that_becomes_another_is_judged_as_who_logged_in(server, role_setting):
    """Such a session has another role before its first statement, which hides its own sessions."""
    session = server.session()
    server.ask("GRANT billing TO app")
    role_setting("role = billing")
    with server.alias():
        assert reap(*server.rested(session)).fate(session) == ("signalled", None)
    server.ask("REVOKE billing FROM app")


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_read_only = on",
        "default_transaction_isolation = serializable",
        "default_transaction_deferrable = on",
        "idle_session_timeout = '20s'",
        "datestyle = 'SQL, DMY'",
        "intervalstyle = sql_standard",
        "timezone = 'Asia/Kathmandu'",
        "extra_float_digits = -15",
        "client_encoding = latin1",
        "standard_conforming_strings = off",
        "enable_nestloop = off",
    ],
    ids=str,
)
def test_what_a_role_is_set_to_changes_nothing(server, role_setting, setting):
    skip_where_refused(server.ask, setting)
    role_setting(setting)
    session = server.session()
    with server.alias():
        run = reap(*server.rested(session))
    assert (run.exit_code, run.fate(session), run.summary["gone"]) == (0, ("signalled", None), 1)


def test_a_users_function_never_replaces_the_catalogues(server, role_setting):
    server.ask("CREATE SCHEMA trap")
    server.ask("CREATE TABLE trap.sprung (what text)")
    for name, arguments, result in (
        ("set_config", "text, text, boolean", "text"),
        ("pg_backend_pid", "", "int"),
        ("pg_terminate_backend", "int", "boolean"),
        ("pg_try_advisory_lock", "int, int", "boolean"),
    ):
        body = f"INSERT INTO trap.sprung VALUES ('{name}'); SELECT NULL::{result}"
        server.ask(
            f"CREATE FUNCTION trap.{name}({arguments}) RETURNS {result} LANGUAGE sql SECURITY"
            f" DEFINER AS $${body}$$"
        )
    server.ask("GRANT USAGE ON SCHEMA trap TO app")
    try:
        session = server.session()
        role_setting("search_path = trap, pg_catalog")
        with server.alias():
            assert reap(*server.rested(session)).fate(session) == ("signalled", None)
        assert server.ask("SELECT * FROM trap.sprung") == []
    finally:
        server.ask("DROP SCHEMA trap CASCADE")
