"""The local server obeys, and ends with its owner in every case."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.polling import until
from tools.local_postgres import LocalPostgres, LocalPostgresError, find_binaries, server_address

ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import sys, time
from tools.local_postgres import LocalPostgres
server = LocalPostgres().start()
pid_file = server.log.parent / "cluster/postmaster.pid"
print(server.log.parent, pid_file.read_text().splitlines()[0], flush=True)
exec(sys.argv[1])
"""


def own(then: str) -> tuple[subprocess.Popen[str], Path, int]:
    """Start a process that starts a server and runs *then*; return it, folder and pid."""
    command = [sys.executable, "-c", OWNER, then]
    owner = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    folder, pid = owner.stdout.readline().rsplit(" ", 1)
    return owner, Path(folder), int(pid)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def connect(session_factory):
    def connect(server, **parameters):
        known = {
            "host": server.host,
            "port": server.port,
            "user": "postgres",
            "password": "",
            "dbname": "postgres",
        }
        return session_factory(**{**known, **parameters})

    return connect


def test_the_chosen_settings_hold(connect):
    with LocalPostgres(max_connections=7, settings={"work_mem": "123kB"}) as server:
        session = connect(server)
        shown = [
            session.execute(f"SHOW {name}")
            for name in ("max_connections", "work_mem", "listen_addresses")
        ]
        assert shown == [[("7",)], [("123kB",)], [("127.0.0.1",)]]
        assert session.execute("SELECT pg_backend_pid()") == [(session.pid,)]
        assert f"[{session.pid}] <" not in server.log.read_text()
        session.execute("DO $$ BEGIN RAISE LOG 'here I am'; END $$")
        until(lambda: f"[{session.pid}] <" in server.log.read_text())


def test_scram_asks_for_the_password(connect):
    with LocalPostgres(auth="scram-sha-256") as server:
        assert server.password in server.url()
        connect(server, password=server.password)
        with pytest.raises(Exception, match="password"):
            connect(server, password="wrong")


def test_a_restart_ends_the_sessions_and_keeps_port_and_rows(connect):
    with LocalPostgres() as server:
        port, before = server.port, connect(server)
        before.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        server.restart("fast")
        assert server.port == port
        with pytest.raises(Exception, match=r"terminat|clos"):
            before.execute("SELECT 1")
        assert connect(server).execute("SELECT answer FROM kept") == [(42,)]


def test_a_halted_server_refuses_until_it_is_started(connect):
    with LocalPostgres() as server:
        server.halt("immediate")
        with pytest.raises(Exception, match="refused"):
            connect(server)
        server.start()
        connect(server)


def test_nothing_is_left_after_the_block(connect):
    with LocalPostgres() as server:
        folder, session = server.log.parent, connect(server)
        assert lives(session.pid)
    assert not folder.exists()
    assert not lives(session.pid)
    server.stop()
    with pytest.raises(LocalPostgresError, match="not running"):
        server.restart()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_owner_is_killed(number):
    owner, folder, pid = own("time.sleep(60)")
    assert lives(pid)
    owner.send_signal(number)
    owner.communicate(timeout=20)
    until(lambda: not folder.exists() and not lives(pid))


def test_nothing_is_left_when_the_owner_ends_without_a_word():
    owner, folder, pid = own("")
    owner.communicate(timeout=20)
    assert owner.returncode == 0
    assert not folder.exists()
    assert not lives(pid)


def test_nothing_is_left_when_a_fork_outlives_the_owner():
    # The fork holds the supervisor's pipe open.
    owner, folder, pid = own("import os; time.sleep(60) if os.fork() == 0 else os._exit(0)")
    try:
        until(lambda: not folder.exists() and not lives(pid))
    finally:
        os.killpg(owner.pid, signal.SIGKILL)
        owner.communicate(timeout=20)


def test_modes_and_users_of_the_machine_stay_as_they_are():
    places = [find_binaries(), *find_binaries().parents, Path("/etc/passwd"), Path("/etc/group")]
    before = [
        (place, place.stat().st_mode, place.stat().st_uid, place.stat().st_gid) for place in places
    ]
    written = [Path(name).read_bytes() for name in ("/etc/passwd", "/etc/group")]
    with LocalPostgres():
        pass
    assert before == [
        (place, place.stat().st_mode, place.stat().st_uid, place.stat().st_gid) for place in places
    ]
    assert written == [Path(name).read_bytes() for name in ("/etc/passwd", "/etc/group")]


def test_programs_out_of_the_servers_reach_are_copied(tmp_path, monkeypatch):
    # As root the server runs as another user, who can't enter a private folder; otherwise this is
    # a plain start.
    private = tmp_path / "with a space" / "private"
    private.mkdir(parents=True)
    prefix = find_binaries().parent
    shutil.copytree(prefix, private / prefix.parent.name / prefix.name)
    libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, private / libraries.name)
    private.chmod(0o700)
    monkeypatch.setenv("PG_BINDIR", str(private / prefix.parent.name / prefix.name / "bin"))
    with LocalPostgres() as server:
        assert server.bin.is_relative_to(private)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": {"no_such_setting": 1}}, "unrecognized configuration parameter"),
        ({"max_connections": 0}, "outside the valid range"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line_and_leaves_nothing(
    options, words, monkeypatch
):
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    place.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(place))
    with pytest.raises(LocalPostgresError, match=words) as caught:
        LocalPostgres(**options).start()
    assert "\n" not in str(caught.value)
    # It is empty.
    place.rmdir()


def test_a_folder_without_programs_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PG_BINDIR", str(tmp_path))
    with pytest.raises(LocalPostgresError, match="PG_BINDIR"):
        LocalPostgres().start()


def test_DATABASE_URL_wins(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://owner@elsewhere/theirs")
    with server_address() as address:
        assert address == "postgres://owner@elsewhere/theirs"


def test_without_DATABASE_URL_a_server_lives_as_long_as_the_block(monkeypatch, connect):
    monkeypatch.delenv("DATABASE_URL")
    with server_address(max_connections=9) as address:
        port = int(address.rpartition(":")[2].partition("/")[0])
        assert connect(LocalPostgres(port=port)).execute("SHOW max_connections") == [("9",)]
