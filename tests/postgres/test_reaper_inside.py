"""The procedure of --advise: it ends exactly the sessions that --dry-run names."""

from __future__ import annotations

import io
import subprocess
import threading

import pytest
from django.core.management import call_command

from tests.support.own_server import IDLE_FOR, own_server
from tests.support.polling import until
from tests.support.programs import require_pg_cron
from tests.support.reaping import reap

CALL = "CALL conn_guard_reap('0.1 s')"
NAMES = [
    "shop",
    "shop:77",
    "shop:77:views.cart",
    "psql",
    "psql - x",
    "a[b",
    "it's",
    "%s",
    "x\ty",
    "",
]


@pytest.fixture(scope="module")
def started(django_db_blocker):
    roles = {
        "app": "LOGIN",
        "other": "LOGIN",
        "o'dd $conn_guard$": "LOGIN",
        "boss": "SUPERUSER LOGIN",
    }
    with django_db_blocker.unblock(), own_server(roles=roles, max_connections=60) as server:
        server.ask("CREATE DATABASE shop")
        yield server


@pytest.fixture
def act(server):
    """Return a function that gives the pids that a dry run names, and those that ended."""

    def compare(sessions, *options, **changes):
        with server.alias(**changes):
            arguments = (*server.rested(*sessions), *options)
            stdout = io.StringIO()
            call_command("idle_reaper", *arguments, "--advise", stdout=stdout)
            named = {
                pid
                for pid, event in reap(*arguments, "--dry-run").sessions.items()
                if event["action"] == "would_signal"
            }
        statements = [line for line in stdout.getvalue().splitlines() if "ALTER ROLE" not in line]
        server.ask("\n".join(statements))
        server.ask(CALL)
        server.ask("DROP PROCEDURE conn_guard_reap")
        ours = {each.pid: each for each in sessions}
        until(lambda: not any(server.alive(ours[pid]) for pid in named if pid in ours))
        return named, {pid for pid, each in ours.items() if not server.alive(each)}

    return compare


def test_it_ends_the_sessions_that_a_dry_run_names(server, act):
    idle, young, locked, listening, holding, temporary, busy = sessions = [
        server.session() for _ in range(7)
    ]
    others = [server.session("other"), server.session("boss"), server.session(dbname="shop")]
    psql = server.session(application_name="psql")
    locked.execute("SELECT pg_advisory_lock(1)")
    listening.execute("/* a /* nested */ comment */ LISTEN news")
    holding.execute("/* conn_guard:holds-state */ SELECT 1")
    temporary.execute("CREATE TEMP TABLE t (n int)")
    busy.execute("BEGIN")
    named, ended = act([*sessions, *others, psql])
    assert named == ended
    spares_temporary = server.major >= 16
    assert named == {idle.pid, young.pid, *([] if spares_temporary else [temporary.pid])}


def test_it_spares_a_listener_in_a_database_with_another_encoding(server, act):
    server.ask("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    listener, idle = (server.session(dbname="latin", client_encoding="LATIN1") for _ in range(2))
    listener.execute("-- \u00e9\nLISTEN news")
    idle.execute("SELECT '\u00e9' -- listen")
    try:
        named, ended = act([listener, idle], "--any-database")
    finally:
        server.clean()
        server.ask("DROP DATABASE latin")
    assert named == ended == {idle.pid}


@pytest.mark.parametrize(
    "options",
    [
        ["--user", "*", "--any-database"],
        ["--user", "*", "--exclude-user", "other"],
        ["--user", "boss", "--user", "app"],
        ["--user", "o'dd $conn_guard$"],
        ["--application-name", "shop"],
        ["--application-name", "[!s]*", "--application-name", "?hop:77"],
        ["--exclude-application-name", "shop*", "--exclude-application-name", "a[[]b"],
        ["--application-name", "it's", "--application-name", "x\ty", "--application-name", ""],
        ["--client", "10.0.0.0/8"],
        ["--client", "127.0.0.0/8", "--exclude-client", "127.0.0.1"],
        ["--exclude-client", "10.0.0.0/8", "--exclude-client", "::1"],
        ["--keep", "1"],
        ["--keep", "2", "--user", "*"],
        ["--idle-in-transaction-for", "0.1s"],
    ],
    ids=" ".join,
)
def test_it_chooses_by_the_same_filters(server, act, options):
    sessions = [server.session(application_name=name) for name in NAMES]
    sessions += [server.session(user) for user in ("other", "boss", "o'dd $conn_guard$")]
    sessions.append(server.session(dbname="shop"))
    waiting = server.session()
    waiting.execute("BEGIN")
    # The superuser sees and may end the sessions of every role.
    role = "boss" if "--user" in options else "app"
    named, ended = act([*sessions, waiting], *options, USER=role)
    assert named == ended
    assert bool(named) != (options[-1] in ("10.0.0.0/8", "127.0.0.1"))
    assert (waiting.pid in named) == ("--idle-in-transaction-for" in options)


def test_a_session_that_stirs_before_its_signal_is_spared(server):
    first, second = server.session(), server.session()
    with server.alias(USER="postgres"):
        arguments = server.rested(first, second)
        stdout = io.StringIO()
        call_command("idle_reaper", *arguments, "--user", "app", "--advise", stdout=stdout)
    text = "\n".join(line for line in stdout.getvalue().splitlines() if "ALTER ROLE" not in line)
    # A pause after each COMMIT, in which the second session runs a statement.
    assert text.count("        COMMIT;") == 1
    server.ask(text.replace("        COMMIT;", "        COMMIT; PERFORM pg_catalog.pg_sleep(0.5);"))
    caller = server.session("postgres", application_name="caller")
    calling = threading.Thread(target=caller.execute, args=(CALL,))
    calling.start()
    until(lambda: server.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
    second.execute("SELECT 1")
    calling.join(timeout=30)
    assert not server.alive(first)
    assert server.alive(second)
    server.ask("DROP PROCEDURE conn_guard_reap")


def test_a_role_that_can_not_see_is_told_the_grant(server):
    session = server.session()
    with server.alias(USER="other"):
        stdout = io.StringIO()
        call_command(
            "idle_reaper", *server.rested(session), "--user", "app", "--advise", stdout=stdout
        )
    server.ask("\n".join(line for line in stdout.getvalue().splitlines() if "ALTER" not in line))
    blind = server.session("other")
    with pytest.raises(Exception, match="other may not see or signal sessions in scope") as raised:
        blind.execute(CALL)
    assert "GRANT pg_read_all_stats, pg_signal_backend TO other" in str(raised.value)
    assert server.alive(session)
    server.ask("DROP PROCEDURE conn_guard_reap")


def test_it_refuses_to_run_inside_a_transaction_and_takes_its_threshold_by_name(server):
    session = server.session()
    with server.alias():
        stdout = io.StringIO()
        call_command("idle_reaper", *server.rested(session), "--advise", stdout=stdout)
    server.ask(stdout.getvalue())
    server.ask("ALTER ROLE app IN DATABASE postgres RESET idle_session_timeout")
    caller = server.session("postgres", application_name="caller")
    caller.execute("BEGIN")
    with pytest.raises(Exception, match="invalid transaction termination"):
        caller.execute(CALL)
    caller.execute("ROLLBACK")
    assert server.alive(session)
    caller.execute("CALL conn_guard_reap(idle_for => '5 min')")
    assert server.alive(session)
    server.ask("DROP PROCEDURE conn_guard_reap")


def test_psql_runs_the_advice_as_it_is_printed(server):
    psql = server.server.bin / "psql"
    if not psql.exists():
        pytest.skip("these binaries come without psql")
    stdout = io.StringIO()
    with server.alias():
        call_command(
            "idle_reaper", "--database", "own", "--idle-for", IDLE_FOR, "--advise", stdout=stdout
        )
    session = server.session()
    server.rested(session)
    done = subprocess.run(
        [psql, "-X", "-v", "ON_ERROR_STOP=1", server.server.url("postgres")],
        input=f"{stdout.getvalue()}\nCALL conn_guard_reap();\n",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "NOTICE:  1 sessions signalled\n")
    assert done.stdout.split() == ["ALTER", "ROLE", "CREATE", "PROCEDURE", "CALL"]
    until(lambda: not server.alive(session))
    server.ask("DROP PROCEDURE conn_guard_reap")
    server.ask("ALTER ROLE app IN DATABASE postgres RESET idle_session_timeout")


def test_pg_cron_calls_it(django_db_blocker, monkeypatch):
    """pg_cron's jobs begin with a minute, so this takes up to one."""
    monkeypatch.setenv("PG_BINDIR", str(require_pg_cron()))
    settings = {"shared_preload_libraries": "pg_cron", "cron.host": "127.0.0.1"}
    with django_db_blocker.unblock(), own_server(settings=settings) as server:
        server.ask("CREATE EXTENSION pg_cron")
        stdout = io.StringIO()
        with server.alias():
            call_command(
                "idle_reaper", "--database", "own", "--idle-for", "0.1s", "--advise", stdout=stdout
            )
        # Without the timeouts before it, which would end the session too.
        text = stdout.getvalue()[stdout.getvalue().index("CREATE OR REPLACE PROCEDURE") :]
        server.ask(text)
        session = server.session()
        (schedule,) = [line[2:] for line in text.splitlines() if "SELECT cron.schedule(" in line]
        server.ask(schedule.replace("*/5", "*"))
        until(lambda: not server.alive(session), timeout=90)
        status = "SELECT status FROM cron.job_run_details WHERE command = 'CALL conn_guard_reap()'"
        until(lambda: ("succeeded",) in server.ask(status))
        server.ask("SELECT cron.unschedule('conn_guard_reap')")
        while server._opened:
            server._opened.pop().close()
