"""The page about the reaper's limits: what it says of PostgreSQL and of the reaper is tried."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conn_guard.sessions.server import PREPARE_SIGNAL
from tests.polling import until
from tests.postgres.reaping import reap

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "what-a-reaper-can-and-cannot-do.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("consistency", ["none", "cache", "snapshot"])
def test_a_second_look_in_a_transaction_is_none(server, consistency):
    (script,) = blocks("sql")
    session, looking = server.session(), server.session("postgres")
    if server.major >= 15:
        looking.execute(f"SET stats_fetch_consistency = {consistency}")
    instants = []
    for line in script.splitlines():
        if line.startswith("--"):
            session.execute("SELECT 'awake'")
            server.rested(session)
            continue
        rows = looking.execute(line.replace("4711", str(session.pid)))
        instants += [state_change for (state_change,) in rows if "state_change" in line]
    first, second, third = instants
    assert first == second < third


def test_the_conditions_are_those_of_the_statement_that_signals():
    table = TEXT.split("| condition |", 1)[1].split("\n\n", 1)[0]
    named = {
        name
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([^`]+)`", row.split(" | ", 1)[0])
    }
    assert named == {
        "backend_start",
        "state_change",
        "state",
        "xact_start",
        "backend_xid",
        "backend_xmin",
        "wait_event",
        "ClientRead",
    }
    assert all(f"a.{name} " in PREPARE_SIGNAL for name in named - {"ClientRead"})
    assert "wait_event = 'ClientRead'" in PREPARE_SIGNAL


def test_the_servers_log_and_its_counter_tell_which_session_an_operator_ended(server):
    ((before,),) = server.ask(
        "SELECT sessions_killed FROM pg_stat_database WHERE datname = 'postgres'"
    )
    session = server.session()
    with server.alias():
        assert reap(*server.rested(session)).fate(session) == ("signalled", None)
    (line,) = (each.strip() for each in blocks("text"))
    assert line.replace("4711", str(session.pid)) in server.server.log.read_text()
    (setting,) = blocks("conf")
    assert "%i" in setting
    killed = "SELECT sessions_killed FROM pg_stat_database WHERE datname = 'postgres'"
    until(lambda: server.ask(killed) == [(before + 1,)])


def test_the_servers_own_timeout_does_not_reach_who_is_there_already(server):
    before = server.session()
    server.ask("ALTER ROLE app SET idle_session_timeout = '50ms'")
    try:
        later = server.session()
        until(lambda: not server.alive(later))
        server.rested(before)
        assert server.alive(before)
    finally:
        server.ask("ALTER ROLE app RESET idle_session_timeout")


def test_the_benchmarks_of_the_page_run():
    pytest.importorskip("psycopg")
    for block in blocks("sh"):
        program, script, *arguments = block.split()
        assert program == "python"
        small = {
            "race": ["--sessions", "12", "--kills", "6", "--minutes", "1"],
            "speed": ["--sessions", "5,9", "--rounds", "1"],
        }
        command = [sys.executable, str(ROOT / script), *arguments, *small[arguments[0]]]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "| ours |" in done.stdout or "| 5 | ours |" in done.stdout


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("https://"):
            continue
        place, _, anchor = target.partition("#")
        linked = (PAGE.parent / place).resolve()
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {
            heading.lower().replace(" ", "-") for heading in headings
        }, target
