"""The command as cron and systemd run it: exit code, streams and signals of a process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from conn_guard.sessions.login import LOG_IN_FOR
from tests.support.polling import until
from tests.support.programs import end_all, free_port

pytestmark = pytest.mark.django_db(transaction=True)

SETTINGS = """
{prelude}
from tests.settings import *
DATABASES["default"].update({changes!r})
CONN_GUARD = {conn_guard!r}
"""


class Process(subprocess.Popen[str]):
    """A running command; end() gives its exit code, its output and its errors."""

    def end(self, signum: int = 0) -> tuple[int, str, str]:
        if signum:
            self.send_signal(signum)
        stdout, stderr = self.communicate(timeout=45)
        return self.returncode, stdout, stderr


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Process]]:
    """Return a function that starts the command, with changes to its alias and its CONN_GUARD."""
    running: list[Process] = []
    known = connections["default"].settings_dict

    def start_process(
        *arguments: str, conn_guard: object = None, prelude: str = "", **changes: object
    ) -> Process:
        module = f"settings_{len(running)}"
        changes = {"NAME": known["NAME"], **changes}
        conn_guard = {} if conn_guard is None else conn_guard
        (tmp_path / f"{module}.py").write_text(
            SETTINGS.format(changes=changes, conn_guard=conn_guard, prelude=prelude)
        )
        path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])
        process = Process(
            [sys.executable, "-m", "django", "idle_reaper", *arguments],
            env={**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": module},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start_process
    end_all(running)


@pytest.fixture
def own_sessions(ask):
    """Return a function that counts the sessions which reapers have on the test database."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'conn_guard:idle_reaper'"
        " AND datname = %s"
    )
    return lambda: ask(statement, [connections["default"].settings_dict["NAME"]])[0][0]


def test_a_run_from_the_command_line(start, session_factory, application_name, ask):
    session = session_factory()
    age = (
        "SELECT clock_timestamp() - state_change > interval '0.2 s' FROM pg_stat_activity WHERE pid"
        " = %s"
    )
    until(lambda: ask(age, [session.pid])[0][0])
    exit_code, stdout, stderr = start(
        "--idle-for", "0.2s", "--application-name", application_name
    ).end()
    assert exit_code == 0
    assert f"signalled  {session.pid}" in stdout
    assert (
        stderr == "The threshold is 0.2s: below 30s a session may be ended in the pause between two"
        " requests.\n"
    )
    assert start("--application-name", application_name, "-v", "0").end() == (0, "", "")


@pytest.mark.parametrize("arguments", [("--dry-run", "--user", "*"), ("--advise",)])
def test_a_reader_that_leaves_early_is_no_fault(start, arguments):
    process = start(*arguments)
    process.stdout.close()
    assert process.wait(45) == 0
    assert "Error" not in process.stderr.read()


def test_a_run_loads_neither_the_rules_of_the_checks_nor_what_other_commands_need(start):
    modules = "import atexit, sys; atexit.register(lambda: print(*sorted(sys.modules)))"
    exit_code, stdout, _ = start("-v", "0", "--dry-run", prelude=modules).end()
    assert exit_code == 0
    loaded = set(stdout.split())
    assert "conn_guard.sessions.reaper" in loaded
    assert {"rich", "textual", "conn_guard.checks.rules"} & loaded == set()
    assert not [
        name for name in loaded if name.startswith(("conn_guard.contrib", "conn_guard.engine."))
    ]
    assert "conn_guard.sessions.render.html" not in loaded


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--idle-for", "banana"],
            "--idle-for: 'banana' is not a duration: write 90s, 10m, 2h or 1d.",
        ),
        (["--idle-for", "0s"], "--idle-for: 0s is not above zero."),
        (["--idle-for"], "argument --idle-for: expected one argument"),
        (["--every", "-1"], "--every: '-1' is not a duration: write 90s, 10m, 2h or 1d."),
        (["--wait", "soon"], "--wait: 'soon' is not a duration: write 90s, 10m, 2h or 1d."),
        (["--max", "some"], "--max: 'some' is not a whole number from 0 on."),
        (["--keep", "-1"], "--keep: '-1' is not a whole number from 0 on."),
        (["--when-above", "101"], "--when-above: '101' is not a percentage from 0 to 100."),
        (
            ["--client", "10.0"],
            "--client: '10.0' is neither a network such as 10.0.0.0/8 nor an address.",
        ),
        (["--user", "*", "--user", "app"], "--user '*' means every role and stands alone."),
        (["--format", "xml"], "argument --format: invalid choice: 'xml' (choose from "),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (
            ["--database", "nope"],
            "There is no alias 'nope' in DATABASES. Name one of 'default', 'other', 'lite'.",
        ),
        (
            ["--database", "lite"],
            (
                "DATABASES['lite'] is no PostgreSQL, so it has no sessions to look at. Name another"
                " alias."
            ),
        ),
        (
            ["--database", "default", "--all-databases"],
            "argument --all-databases: not allowed with argument --database",
        ),
        (
            ["--metrics-file", "/nowhere/reaper.prom"],
            (
                "--metrics-file: '/nowhere/reaper.prom' can't be written: its folder has to exist"
                " and be writable."
            ),
        ),
        (["--database", "two\nlines"], "There is no alias 'two\\nlines' in DATABASES."),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(start, arguments, line):
    exit_code, stdout, stderr = start(*arguments).end()
    assert (exit_code, stdout) == (2, "")
    assert stderr.startswith(f"CommandError: {line}")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("dsn", ["postgresql://app:s3cret@db/shop", "password='s3cret' host=db"])
def test_an_address_in_the_wrong_place_is_not_repeated(start, dsn):
    exit_code, stdout, stderr = start(dsn).end()
    assert (exit_code, stdout) == (2, "")
    assert stderr.startswith("CommandError: unrecognized arguments: ***")
    assert "s3cret" not in stderr
    for name in ("--idle-for", "--keep", "--client", "--when-above", "--format", "--wait"):
        with pytest.raises(CommandError) as raised:
            call_command("idle_reaper", f"{name}={dsn}")
        assert (raised.value.returncode, "s3cret" in str(raised.value)) == (2, False)


@pytest.mark.parametrize(
    ("conn_guard", "line"),
    [
        ([], "CommandError: CONN_GUARD is [], not a dict. "),
        (
            {"REAP_IDLE_FOR": "ten"},
            "CommandError: CONN_GUARD['REAP_IDLE_FOR'] is 'ten', not a duration. ",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_2(start, conn_guard, line):
    exit_code, stdout, stderr = start(conn_guard=conn_guard).end()
    assert (exit_code, stdout) == (2, "")
    assert stderr.startswith(line)
    assert stderr.count("\n") == 1


def test_an_unreachable_server_is_tried_for_a_while_and_then_exit_5(start):
    assert timedelta(seconds=30) == LOG_IN_FOR
    shorter = (
        "import datetime; from conn_guard.sessions import login; login.LOG_IN_FOR ="
        " datetime.timedelta(seconds=3)"
    )
    began = time.monotonic()
    exit_code, stdout, stderr = start(
        HOST="127.0.0.1", PORT=str(free_port()), PASSWORD="s3cret", prelude=shorter
    ).end()
    assert (exit_code, stdout) == (5, "")
    assert time.monotonic() - began >= 3
    at_once, failure = stderr.splitlines()
    assert at_once.startswith("default: can't log in yet, trying for 3 s: ")
    assert failure.startswith("CommandError: default: can't connect: ")
    assert " Check HOST, PORT, USER and PASSWORD. If every slot is taken, now: " in failure
    assert "pg_use_reserved_connections" in failure
    assert "s3cret" not in stderr


@pytest.mark.parametrize(
    "name", ["postgres://app:s3cret@db.internal:5432/" + "x" * 60, "password=s3cret " + "x" * 60]
)
def test_an_address_where_a_name_belongs_is_not_repeated(start, name):
    exit_code, _, stderr = start(NAME=name).end()
    assert exit_code == 2
    assert "s3cret" not in stderr
    assert stderr.count("\n") == 1


def test_an_unknown_option_of_the_driver_is_exit_2(start):
    exit_code, _, stderr = start(OPTIONS={"statement_timeout": 5}).end()
    assert exit_code == 2
    assert "statement_timeout" in stderr


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_one_shot_with_its_number(start, signum, exit_code):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        process = start(HOST="127.0.0.1", PORT=str(silent.getsockname()[1]))
        # It handles signals before it connects, and tries again.
        silent.accept()[0].close()
    ended = process.end(signum)
    assert ended[:2] == (exit_code, "")
    at_once, failure = ended[2].splitlines()
    assert at_once.startswith("default: can't log in yet, trying for 30 s: ")
    name = signal.Signals(signum).name
    assert failure == f"CommandError: default: stopped by {name} after 0 signals."


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_staying_repeats_on_one_session_until_a_signal(
    start, session_factory, application_name, ask, own_sessions, signum
):
    process = start("--every", "0.2s", "--idle-for", "0.2s", "--application-name", application_name)
    first = session_factory()
    until(lambda: not ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [first.pid]))
    # Another worker's tests may reap on this server too.
    reapers = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'conn_guard:idle_reaper'"
        " AND datname = %s"
    )
    database = connections["default"].settings_dict["NAME"]
    ((own,),) = ask(reapers, [database])
    second = session_factory()
    until(lambda: not ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [second.pid]))
    assert ask(reapers, [database]) == [(own,)]
    exit_code, stdout, stderr = process.end(signum)
    assert exit_code == 0
    assert f"signalled  {first.pid}" in stdout
    assert f"signalled  {second.pid}" in stdout
    assert "Traceback" not in stderr
    until(lambda: own_sessions() == 0)


def test_a_second_one_that_stays_stands_by_and_takes_over(
    start, ask, own_sessions, application_name
):
    arguments = ("--every", "0.2s", "--wait", "0.1s", "--application-name", application_name)
    locked = (
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 1668247143 AND granted"
    )
    first = start(*arguments)
    (holder,) = until(lambda: ask(locked))[0]
    second = start(*arguments)
    until(lambda: own_sessions() == 2)
    assert first.end(signal.SIGTERM)[0] == 0
    (successor,) = until(lambda: [pid for pid in ask(locked) if pid != (holder,)])[0]
    exit_code, _, stderr = second.end(signal.SIGTERM)
    assert exit_code == 0
    assert stderr.count(f"another idle_reaper is at work here: pid {holder}") <= 1
    assert successor != holder


def test_staying_ends_in_the_first_round_where_it_can_never_work(start):
    exit_code, _, stderr = start("--every", "1s", OPTIONS={"statement_timeout": 5}).end()
    assert exit_code == 2
    assert stderr.count("\n") == 1


def test_an_error_elsewhere_in_the_project_stops_no_cure(start):
    exit_code, stdout, _ = start("--dry-run", CONN_MAX_AGE="ten").end()
    assert exit_code == 0
    assert "would signal" in stdout


def test_healthy_connections_that_would_be_reaped_are_warned_of_once(start):
    exit_code, _, stderr = start("--dry-run", CONN_MAX_AGE=3600).end()
    assert exit_code == 0
    assert stderr.startswith("conn_guard.W308: CONN_GUARD['REAP_IDLE_FOR'] is 600 s and ")


def test_advice_runs_as_it_is_printed(start, ask):
    exit_code, stdout, stderr = start("--advise", "--idle-for", "5m").end()
    assert (exit_code, stderr) == (0, "")
    try:
        ask(stdout)
        name = connections["default"].settings_dict["NAME"]
        setting = (
            "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
            " WHERE datname = %s"
        )
        assert ask(setting, [name]) == [(["idle_session_timeout=300000ms"],)]
    finally:
        ask(stdout.replace(" SET idle_session_timeout = '300000ms'", " RESET idle_session_timeout"))


def test_advice_ends_with_the_number_of_the_signal(start):
    process = start("--advise", PORT="1")
    assert "can't log in yet" in process.stderr.readline()
    assert process.end(signal.SIGTERM) == (143, "", "CommandError: Stopped by SIGTERM.\n")


@pytest.mark.parametrize("idle_for", ["30d", "0.0001s"])
def test_advice_for_a_threshold_that_no_setting_takes_runs_as_well(start, ask, idle_for):
    exit_code, stdout, _ = start("--advise", "--idle-for", idle_for).end()
    assert (exit_code, "= '0ms'" in stdout) == (0, False)
    assert ("-- idle_session_timeout takes at most 24 days: 30 days need" in stdout) is (
        idle_for == "30d"
    )
    try:
        ask(stdout)
    finally:
        ask(re.sub(r" SET idle_session_timeout = '\w+'", " RESET idle_session_timeout", stdout))


def test_help_says_that_it_terminates_and_names_every_option_of_the_page(start):
    exit_code, stdout, stderr = start("--help").end()
    assert (exit_code, stderr) == (0, "")
    text = " ".join(stdout.split())
    assert "Terminates the sessions of the alias's own role and database" in text
    assert "--dry-run shows them and signals none" in text
