"""``conn-guard`` runs the commands on a server, without a project."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from conn_guard.__main__ import COMMANDS
from conn_guard.management.commands import idle_reaper
from conn_guard.management.dsn import alias_settings
from tests.support import programs
from tests.support.own_server import OwnServer

VARIABLES = ("PG", "DATABASE_URL", "DJANGO_SETTINGS_MODULE", "CONN_GUARD")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def conn_guard(tmp_path) -> Run:
    """Return a function that runs the command with *environment* and none of its variables set."""

    def run(
        *arguments: str, timeout: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)
        }
        path = os.pathsep.join(each for each in sys.path if each)
        return subprocess.run(
            [sys.executable, "-m", "conn_guard", *arguments],
            cwd=tmp_path,
            env={**inherited, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def url(server: OwnServer) -> str:
    return f"postgresql://app@{server.server.host}:{server.server.port}/postgres"


@pytest.fixture(params=["--dsn", "DATABASE_URL", "PG*", "service file", "PGSERVICE"])
def on_server(request, conn_guard: Run, server: OwnServer, url: str, tmp_path) -> Run:
    """The command with the address of the server, given in each way."""
    host, port = server.server.host, str(server.server.port)
    file = tmp_path / "services"
    file.write_text(f"[shop]\nhost={host}\nport={port}\nuser=app\ndbname=postgres\n")
    if request.param == "--dsn":
        return lambda *arguments: conn_guard(*arguments, "--dsn", url)
    if request.param == "service file":
        environment = {"DATABASE_URL": "postgresql://?service=shop", "PGSERVICEFILE": str(file)}
    else:
        environment = {
            "DATABASE_URL": {"DATABASE_URL": url},
            "PG*": {"PGHOST": host, "PGPORT": port, "PGUSER": "app", "PGDATABASE": "postgres"},
            "PGSERVICE": {"PGSERVICE": "shop", "PGSERVICEFILE": str(file)},
        }[request.param]
    return partial(conn_guard, **environment)


def test_report_finds_the_server_however_it_is_named(on_server, server):
    server.session()
    done = on_server("report", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["address"] == f"app@{server.server.host}:{server.server.port}/postgres"
    assert [group["application"] for group in report["groups"] if group["user"] == "app"] == [
        "shop"
    ]


def test_the_report_names_conn_guard_as_the_command_to_type(conn_guard, server, url):
    server.rested(server.session())
    done = conn_guard("report", "--idle-for", "0.1s", DATABASE_URL=url)
    assert "conn-guard reap --dry-run --idle-for 0.1s" in done.stdout
    assert "manage.py" not in done.stdout


def test_reap_ends_the_sessions_that_idle_reaper_would(conn_guard, server, url, until):
    session = server.session()
    server.rested(session)
    options = ("--idle-for", "0.1s", "--format", "json")
    done = conn_guard("reap", "--dry-run", *options, DATABASE_URL=url)
    assert json.loads(done.stdout.splitlines()[0])["action"] == "would_signal"
    assert server.alive(session)
    done = conn_guard("reap", *options, DATABASE_URL=url)
    assert (done.returncode, json.loads(done.stdout.splitlines()[-1])["gone"]) == (0, 1)
    until(lambda: not server.alive(session))


def test_advise_prints_the_sql(conn_guard, url):
    done = conn_guard("advise", DATABASE_URL=url)
    assert "ALTER ROLE app IN DATABASE postgres SET idle_session_timeout" in done.stdout


def test_check_prints_what_holds_for_the_role(conn_guard, server, url):
    done = conn_guard("check", DATABASE_URL=url)
    assert (done.returncode, "conn_guard.I305" in done.stderr) == (0, True)
    assert "conn_guard.I201" not in done.stderr
    superuser = url.replace("app@", "postgres@")
    done = conn_guard("check", "--fail-level", "WARNING", DATABASE_URL=superuser)
    assert (done.returncode, "conn_guard.W307" in done.stderr) == (1, True)


def test_check_fails_where_the_server_cannot_be_asked(conn_guard, server):
    dsn = "postgresql://app:secret@127.0.0.1:1/shop"
    done = conn_guard("check", DATABASE_URL=dsn)
    assert (done.returncode, done.stdout) == (5, "")
    assert re.fullmatch(r"CommandError: default: can't connect: .*\n", done.stderr)
    assert "secret" not in done.stderr


@pytest.mark.parametrize("command", ["report", "reap", "advise", "check"])
def test_without_an_address_and_a_server_the_address_is_asked_for_at_once(conn_guard, command):
    pytest.importorskip("psycopg", reason="psycopg2 can't ask whether a server is there")
    # No server can listen on port 1, where libpq looks on this machine.
    done = conn_guard(command, PGPORT="1", PGUSER="app")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == (
        "CommandError: No server is named, and none answers on this machine. Name one: conn-guard"
        f" {command} --dsn postgresql://USER@HOST:PORT/DATABASE, or set DATABASE_URL or PGHOST.\n"
    )


@pytest.mark.parametrize("command", ["report", "reap"])
def test_errors_advise_what_there_is_without_a_project(conn_guard, command, server):
    address = {"HOST": server.server.host, "PORT": server.server.port, "USER": "app"}
    with programs.pgbouncer({**address, "PASSWORD": ""}, "transaction") as through:
        done = conn_guard(
            command, DATABASE_URL=f"postgresql://app@{through.host}:{through.port}/postgres"
        )
    assert done.returncode == 2
    assert done.stderr == (
        "CommandError: A pooler stands between conn-guard and the server, so its sessions can't be"
        " told apart. Name the server's own host and port, with --dsn or DATABASE_URL.\n"
    )


def test_a_login_that_fails_advises_conn_guard(conn_guard):
    done = conn_guard("reap", "--connect-for", "0.1s", "--dsn", "postgresql://app@127.0.0.1:1/x")
    assert done.returncode == 5
    assert "now: run conn-guard reap --user app with the superuser's DATABASE_URL" in done.stderr
    assert "or let conn-guard reap --every keep its one session open" in done.stderr
    assert "idle_reaper" not in done.stderr


@pytest.mark.parametrize("arguments", [("report", "--watch", "1s"), ("reap", "--every", "1s")])
def test_a_run_that_stays_waits_for_the_server(conn_guard, arguments):
    with pytest.raises(subprocess.TimeoutExpired) as ended:
        conn_guard(*arguments, timeout=4, PGPORT="1")
    assert "default: can't log in yet, trying for 30 s: " in ended.value.stderr.decode()


@pytest.mark.parametrize("dsn", ["", "postgresql://app:secret@127.0.0.1/shop"])
@pytest.mark.parametrize(
    "command",
    [
        (),
        ("kill",),
        ("report", "--kill"),
        ("report", "--settings", "shop"),
        ("reap", "--keep", "x"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(conn_guard, command, dsn):
    done = conn_guard(*command, DATABASE_URL=dsn)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"CommandError: .*\n", done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "postgresql://app:secret@db/shop"),
        ("postgresql://app:secret@db/shop",),
        ("reap", "host=db password=secret"),
        ("report", "--dsn", "mysql://app:secret@db/shop"),
        ("report", "--dsn", "postgresql://app:secret@db:secret/shop"),
    ],
)
def test_a_wrong_call_never_shows_a_password(conn_guard, arguments):
    done = conn_guard(*arguments)
    assert done.returncode == 2
    assert re.fullmatch(r"CommandError: .*\n", done.stderr)
    assert "secret" not in done.stderr


def test_a_password_in_the_arguments_is_warned_of_and_not_shown(conn_guard, url):
    done = conn_guard("report", "--dsn", url.replace("app@", "app:secret@"))
    assert done.returncode == 0
    assert re.fullmatch(r"--dsn holds a password, .*\n", done.stderr)
    assert "secret" not in done.stdout + done.stderr


def test_dsn_comes_before_database_url_and_may_stand_before_the_command(conn_guard, url):
    done = conn_guard("--dsn", url, "report", DATABASE_URL="postgresql://app@127.0.0.1:1/shop")
    assert done.returncode == 0


@pytest.mark.parametrize("command", ["report", "reap", "advise", "check", "probe"])
def test_each_command_shows_its_options(conn_guard, command):
    done = conn_guard(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: conn-guard {command} ")


def test_the_options_of_reap_are_those_of_idle_reaper(conn_guard):
    parser = idle_reaper.Command().create_parser("manage.py", "idle_reaper")
    texts = (conn_guard("reap", "--help").stdout, parser.format_help())
    shown, known = (re.findall(r"^  (?:-\w, )?(--[\w-]+)", each, re.MULTILINE) for each in texts)
    assert "--idle-for" in shown
    assert shown == known


def test_probe_takes_urls(conn_guard, url):
    pytest.importorskip("aiohttp")
    done = conn_guard("probe", "--dsn", url, "http://192.0.2.1/")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"CommandError: 192\.0\.2\.1 is not a loopback address\. .*\n", done.stderr)


def test_help_and_version_need_no_server(conn_guard):
    assert conn_guard("--help").stdout.startswith("usage: conn-guard ")
    assert re.fullmatch(r"conn-guard [\d.]+\n", conn_guard("--version").stdout)


def test_a_check_is_explained_without_a_server(conn_guard):
    done = conn_guard("check", "E101", "conn_guard.w120")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^conn_guard\.\w+$", done.stdout, re.MULTILINE) == [
        "conn_guard.E101",
        "conn_guard.W120",
    ]
    done = conn_guard("check", "E1o1")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"CommandError: There is no check 'E1o1'\. Near it: \w{4}, \w{4}, \w{4}\.\n", done.stderr
    )


PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "conn-guard.md").read_text("utf-8")


@pytest.mark.parametrize("line", re.findall(r"^conn-guard .*$", PAGE, re.MULTILINE))
def test_the_commands_of_the_page_run(conn_guard, url, line):
    assert conn_guard(*shlex.split(line)[1:], DATABASE_URL=url).returncode == 0


def test_the_page_has_each_command():
    assert re.findall(r"^\| `conn-guard (\w+)` \|", PAGE, re.MULTILINE) == list(COMMANDS)


def test_the_dsns_of_the_page_can_be_read():
    dsns = re.findall(r"^\| `([^`]*(?:://|=)[^`]*)` \|", PAGE, re.MULTILINE)
    assert len(dsns) == 5
    for dsn in dsns:
        assert alias_settings(dsn, {})
