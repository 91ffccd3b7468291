"""The demo as people run it: its exit codes, what it leaves behind, and that it can fail."""

from __future__ import annotations

import json
import re
import signal
from xml.etree import ElementTree

import pytest

from tests.example.conftest import MARK

OWN_SERVER = {"DATABASE_URL": None}


def test_it_shows_the_leak_its_end_and_its_cure(manage, mark, marked, tmp_path):
    options = ("--times", "2", "--picture", "demo.svg")
    process = manage("demo", *options, **OWN_SERVER, **{MARK: mark})
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, out + err
    figures = {
        row[0]: row[1:]
        for row in re.findall(r"^(\d\w?) .*?(\d+) +(\d+) +(\d+) +(\d+) *$", out, re.MULTILINE)
    }
    assert list(figures) == ["1", "2", "3a", "3b"]
    requests, errors, peak, left = map(int, figures["1"])
    assert errors >= 10
    assert 27 <= left <= peak <= 36
    assert figures["2"][3] == "0"
    for act in ("3a", "3b"):
        assert figures[act][0] == str(2 * requests)
        assert figures[act][1] == figures[act][3] == "0"
    assert "$ manage.py idle_reaper" in out
    assert not marked()
    assert {path.name for path in tmp_path.iterdir()} == {"demo-report.html", "demo.svg"}
    title = ElementTree.parse(tmp_path / "demo.svg").findtext("{*}title")
    assert title.startswith("Slots in use out of 36. Without conn_guard: ")
    page = (tmp_path / "demo-report.html").read_text()
    assert f"{requests} downloads took {left} of 36 slots" in page
    assert "<svg" in page
    # It needs nothing but itself: no address, no script, no import.
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(|\bsrc=|\bhref=", page)


def test_it_exits_with_1_when_the_guard_does_not_hold(manage, tmp_path):
    broken = json.dumps({"CLOSE": "never", "CLOSE_WITH_OWNER": False})
    process = manage("demo", "--report", "broken.html", CONN_GUARD=broken, **OWN_SERVER)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1, out + err
    assert re.search(r"Act 3a has to leave no session, and left \d+ of 36\.", err)
    assert re.search(r"Act 3b has to leave no session", err)
    assert "The demo failed" in (tmp_path / "broken.html").read_text()


def test_it_exits_with_1_when_there_is_no_leak_to_show(manage):
    process = manage("demo", SENDFILE_BACKEND="simple", **OWN_SERVER)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1, out + err
    assert "Act 1 has to end in 500s" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_process_and_no_folder(manage, mark, marked, tmp_path, number, until):
    process = manage("demo", **OWN_SERVER, **{MARK: mark})
    assert any(line.startswith("act 1") for line in process.stdout)
    folders = set(marked().values())
    assert any("local_postgres" in str(folder) for folder in folders)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Stopped: everything that was started is gone." in out
    assert "Traceback" not in err
    until(lambda: not marked())
    assert not [folder for folder in folders if "local_postgres" in str(folder) and folder.exists()]
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_no_process(manage, mark, marked, until):
    process = manage("demo", **OWN_SERVER, **{MARK: mark})
    assert any(line.startswith("act 1") for line in process.stdout)
    process.kill()
    process.wait()
    until(lambda: not marked(), timeout=30)


@pytest.mark.django_db
def test_a_server_of_the_users_keeps_nothing_of_it(manage, ask):
    process = manage("demo", "--times", "1")
    assert any(line.startswith("act 1") for line in process.stdout)
    named = "SELECT rolname, rolconnlimit FROM pg_roles WHERE rolname LIKE 'conn_guard_demo_%'"
    assert any(0 < limit < 37 for _, limit in ask(named))
    mine = {name for name, _ in ask(named)}
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert mine - {name for name, _ in ask(named)}


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--times", "banana"], {}, "'banana' is not a number of times"),
        (["--report", "absent/page.html"], {}, "absent/page.html can't be written"),
        (["--times", "0"], {}, "'0' is not a number of times"),
        ([], {"DATABASE_URL": "sqlite:///x.sqlite3"}, "DATABASE_URL is no PostgreSQL's"),
        ([], {"DATABASE_URL": "postgres://postgres@127.0.0.1:1/postgres"}, "it refused"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(manage, arguments, environment, words):
    process = manage("demo", *arguments, **environment)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err
