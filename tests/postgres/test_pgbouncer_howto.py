"""The page on PgBouncer: its files are run as they stand, and each of its claims is tried."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from django.db import models, transaction
from django.db.backends.postgresql.base import Database
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test.utils import isolate_apps

from tests.postgres.howto import blocks, lines
from tests.support import programs
from tests.support.polling import until
from tests.support.reaping import reap
from tests.support.second_session import Session
from tools.local_postgres import LocalPostgres

PAGE = "pgbouncer"
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "example_project"
STOCK = "django.db.backends.postgresql"
CLIENTS = 500
SHOP = {"user": "shop", "password": "change-me", "dbname": "shop"}
SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop' AND backend_type = 'client"
    " backend'"
)


class Console:
    """PgBouncer's own database, asked by its operator."""

    def __init__(self, port):
        self.connection = Database.connect(
            host="127.0.0.1",
            port=port,
            user="operator",
            password="change-me-too",
            dbname="pgbouncer",
        )
        self.connection.autocommit = True
        if is_psycopg3:
            # The console doesn't speak the extended protocol.
            self.connection.prepare_threshold = None

    def ask(self, command):
        """Run *command* and return its rows, a dict each."""
        with self.connection.cursor() as cursor:
            cursor.execute(command)
            if not cursor.description:
                return []
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def pool(self, database="shop"):
        (row,) = [each for each in self.ask("SHOW POOLS") if each["database"] == database]
        return row

    def clients(self, database="shop"):
        """Return how many clients are at rest or served."""
        row = self.pool(database)
        return row["cl_active"] + row["cl_waiting"]


class Pooler:
    """A PgBouncer that runs the files of the page."""

    def __init__(self, port):
        self.port = port
        self.console = Console(port)
        self.settings = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "USER": "shop",
            "PASSWORD": "change-me",
            "NAME": "shop",
        }
        self._opened = []

    def client(self, **parameters):
        """Open a client that ends with the pooler."""
        known = {**SHOP, "host": "127.0.0.1", "port": self.port, "application_name": "shop"}
        session = Session(**{**known, **parameters})
        self._opened.append(session)
        return session

    def close(self):
        for each in self._opened:
            each.close()
        self.console.connection.close()


@pytest.fixture(scope="module")
def server(django_db_blocker):
    """A server that asks for passwords, with the role and the database of the page."""
    with (
        django_db_blocker.unblock(),
        LocalPostgres(max_connections=80, auth="scram-sha-256") as started,
    ):
        with observer(started) as ask:
            ask("CREATE ROLE shop LOGIN PASSWORD 'change-me'")
            ask("CREATE DATABASE shop OWNER shop")
        yield started


@contextmanager
def observer(server):
    session = Session(
        host=server.host,
        port=server.port,
        user="postgres",
        password=server.password,
        dbname="postgres",
        application_name="test-observer",
    )
    yield session.execute
    session.close()


@pytest.fixture
def ask(server):
    """Run a statement as the server's superuser."""
    with observer(server) as ask:
        yield ask


@pytest.fixture
def pooler(server):
    """Return a function that runs the page's PgBouncer, with some of its lines changed."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(running(server, **changes))


@contextmanager
def running(server, **changes):
    (ini,) = blocks(PAGE, "ini", "pgbouncer.ini")
    (users,) = blocks(PAGE, "text", "userlist.txt")

    def configure(folder, port):
        text = ini.text.replace("host=10.0.0.5 port=5432", f"host=127.0.0.1 port={server.port}")
        here = {"listen_port": port, "auth_file": folder / "userlist.txt", **changes}
        for key, value in here.items():
            text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
            assert found == 1, key
        # Tests leave no socket in /tmp.
        (folder / "pgbouncer.ini").write_text(f"{text}\nunix_socket_dir =\n")
        (folder / "userlist.txt").write_text(users.text + "\n")
        return [programs.require("pgbouncer"), str(folder / "pgbouncer.ini")]

    with programs.running(configure, end=programs.PGBOUNCER_END) as port:
        pooler = Pooler(port)
        try:
            yield pooler
        finally:
            pooler.close()


def test_every_block_is_of_a_kind_that_is_run():
    known = {"ini", "text", "python", "sh", "console", "pgbouncer"}
    assert {block.language for block in blocks(PAGE)} == known


def test_pgbouncer_takes_the_file_of_the_page(pooler):
    (ini,) = blocks(PAGE, "ini", "pgbouncer.ini")
    written = dict(re.findall(r"(?m)^(\w+) = (\w+)$", ini.text.partition("[pgbouncer]")[2]))
    assert (written["max_client_conn"], written["default_pool_size"]) == (str(CLIENTS), "50")
    shown = {row["key"]: row for row in pooler().console.ask("SHOW CONFIG")}
    places = {"listen_port", "unix_socket_dir"}
    assert {key: shown[key]["value"] for key in written if key not in places} == {
        key: value for key, value in written.items() if key not in places
    }
    if "default" in shown["server_idle_timeout"]:
        assert shown["server_idle_timeout"]["default"] == "600"
        assert shown["query_wait_timeout"]["default"] == "120"


def test_the_console_answers_the_commands_of_the_page(pooler):
    running = pooler()
    running.client()
    for command in lines(PAGE, "pgbouncer"):
        assert running.console.ask(command), command
    (row,) = [each for each in running.console.ask("SHOW CLIENTS") if each["database"] == "shop"]
    assert row["user"] == "shop"


def test_the_command_of_the_page_leads_to_the_console(server, pooler):
    psql = server.bin / "psql"
    if not psql.exists():
        pytest.skip("these binaries come without psql")
    (line,) = lines(PAGE, "console")
    _, *words = line.replace("6432", str(pooler().port)).split()
    done = subprocess.run(
        [psql, "-X", *words, "-c", "SHOW VERSION"],
        env={**os.environ, "PGPASSWORD": "change-me-too"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "PgBouncer" in done.stdout, done.stderr


def test_a_wrong_password_is_refused(pooler):
    with pytest.raises(Database.OperationalError, match=r"(?i)auth"):
        pooler().client(password="guessed")


# Limits


def test_fifty_transactions_are_served_and_the_next_one_waits(pooler, ask):
    running = pooler()
    busy = [running.client() for _ in range(50)]
    for each in busy:
        each.execute("BEGIN")
        each.execute("SELECT 1")
    next_one = running.client
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: next_one().execute("SELECT 'served'"))
        until(lambda: running.console.pool()["cl_waiting"] == 1)
        assert ask(SESSIONS) == [(50,)]
        assert not answer.done()
        busy[0].execute("ROLLBACK")
        assert answer.result(timeout=10) == [("served",)]
    assert ask(SESSIONS) == [(50,)]


def test_a_client_beyond_the_limit_is_refused(pooler):
    # The console's connection is one of the three.
    running = pooler(max_client_conn=3)
    for _ in range(2):
        running.client()
    with pytest.raises(Database.OperationalError, match="no more connections allowed"):
        running.client()


def test_a_client_that_waits_too_long_is_disconnected(pooler):
    running = pooler(default_pool_size=1, query_wait_timeout=1)
    running.client().execute("BEGIN")
    told = "query_wait_timeout" if is_psycopg3 else "server closed the connection"
    with pytest.raises(Database.DatabaseError, match=told):
        running.client()


def test_a_client_that_rests_in_a_transaction_is_disconnected(pooler):
    running = pooler(idle_transaction_timeout=1)
    client = running.client()
    client.execute("BEGIN")
    until(lambda: running.console.clients() == 0)
    with pytest.raises(
        Database.DatabaseError, match=r"(idle transaction timeout|closed the connection)"
    ):
        client.execute("SELECT 1")


def test_unused_server_sessions_are_closed(pooler, ask):
    running = pooler(server_idle_timeout=1)
    client = running.client()
    until(lambda: ask(SESSIONS) == [(0,)])
    assert client.execute("SELECT 1") == [(1,)]


@pytest.mark.parametrize(("database", "held"), [("shop", 0), ("shop_session", 3)])
def test_clients_at_rest_hold_server_sessions_in_session_mode_alone(pooler, database, held):
    running = pooler()
    for _ in range(3):
        running.client(dbname=database)
    until(lambda: running.console.pool(database)["sv_active"] == held)
    assert running.console.clients(database) == 3


# Transaction mode


@pytest.fixture
def parted(pooler, make_engine):
    """Return a function that adds an alias on the page's pooler, and one to lose its session to.

    The second function takes the server session that the alias used last.
    """

    def part(options=None, **settings):
        running = pooler()
        alias = make_engine(engine=STOCK, options=options, **running.settings, **settings)
        other = running.client()

        def take():
            other.execute("BEGIN")
            return other.execute("SELECT pg_backend_pid()")[0][0]

        return alias, take

    return part


@pytest.fixture
def types():
    """A model over a table that every server has, with more rows than a chunk."""
    with isolate_apps("conn_guard"):

        class Type(models.Model):
            typname = models.TextField(primary_key=True)

            class Meta:
                app_label = "conn_guard"
                db_table = "pg_type"
                managed = False

        yield Type.objects


# Django can't close the cursor that is lost, and psycopg warns of it.
@pytest.mark.filterwarnings("ignore:.*cursor:ResourceWarning")
def test_an_iterator_outside_a_transaction_loses_its_cursor(parted, types):
    alias, take = parted(CONN_MAX_AGE=None)
    rows = types.using(alias.name).iterator(chunk_size=10)
    next(rows)
    take()
    with pytest.raises(Exception, match=r'cursor "_django_curs_.*" does not exist'):
        list(rows)
    del rows
    gc.collect()


def test_without_server_side_cursors_an_iterator_works(parted, types):
    alias, take = parted(CONN_MAX_AGE=None, DISABLE_SERVER_SIDE_CURSORS=True)
    rows = types.using(alias.name).iterator(chunk_size=10)
    next(rows)
    take()
    assert len(list(rows)) > 10


def test_inside_a_transaction_an_iterator_works(parted, types):
    alias, take = parted(CONN_MAX_AGE=None)
    with transaction.atomic(alias.name):
        rows = types.using(alias.name).iterator(chunk_size=10)
        next(rows)
        take()
        assert len(list(rows)) > 10


@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 prepares nothing")
@pytest.mark.parametrize("threshold", [0, None])
def test_prepared_statements_need_a_newer_pgbouncer(parted, threshold):
    options = {"prepare_threshold": threshold, "server_side_binding": True}
    alias, take = parted(options, CONN_MAX_AGE=None)
    alias.query("SELECT %s::int", [1])
    take()
    version = subprocess.run(
        [programs.require("pgbouncer"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    major, minor = map(int, re.search(r"(\d+)\.(\d+)", version).groups())
    if threshold is None or (major, minor) >= (1, 24):
        assert alias.query("SELECT %s::int", [1]) == [(1,)]
    else:
        with pytest.raises(Exception, match=r'prepared statement "_pg3_.*" does not exist'):
            alias.query("SELECT %s::int", [1])


@pytest.mark.parametrize("database", ["shop", "shop_session"])
def test_settings_at_login_are_refused_in_both_modes(pooler, ask, database):
    running = pooler()
    with pytest.raises(Database.OperationalError, match="unsupported startup parameter"):
        running.client(dbname=database, options="-c statement_timeout=5000")
    (advice,) = re.findall(r"ALTER ROLE shop SET statement_timeout = '5s'", page())
    ask(advice)
    try:
        assert running.client(dbname=database).execute("SHOW statement_timeout") == [("5s",)]
    finally:
        ask("ALTER ROLE shop RESET statement_timeout")


def test_ignored_settings_are_silently_not_in_force(server):
    ignore = "transaction\nignore_startup_parameters = options"
    with running(server, pool_mode=ignore) as pooler:
        client = pooler.client(options="-c statement_timeout=5000")
        assert client.execute("SHOW statement_timeout") == [("0",)]


def test_the_next_client_gets_a_setting_and_a_lock_in_transaction_mode(pooler):
    running = pooler()
    first, second = running.client(), running.client()
    first.execute("SET statement_timeout = '7s'")
    first.execute("SELECT pg_advisory_lock(7)")
    assert second.execute("SHOW statement_timeout") == [("7s",)]
    assert second.execute("SELECT pg_try_advisory_lock(7)") == [(True,)]


def test_set_local_and_a_transactions_lock_end_with_the_transaction(pooler):
    running = pooler()
    first, second = running.client(), running.client()
    first.execute("BEGIN")
    first.execute("SET LOCAL statement_timeout = '7s'")
    first.execute("SELECT pg_advisory_xact_lock(7)")
    assert second.execute("SELECT pg_try_advisory_xact_lock(7)") == [(False,)]
    first.execute("COMMIT")
    assert second.execute("SHOW statement_timeout") == [("0",)]
    assert second.execute("SELECT pg_try_advisory_xact_lock(7)") == [(True,)]


def test_in_session_mode_a_setting_and_a_lock_are_the_clients_own(pooler):
    running = pooler()
    first, second = (running.client(dbname="shop_session") for _ in range(2))
    first.execute("SET statement_timeout = '7s'")
    first.execute("SELECT pg_advisory_lock(7)")
    assert second.execute("SHOW statement_timeout") == [("0",)]
    assert second.execute("SELECT pg_try_advisory_lock(7)") == [(False,)]


# The project of the page


def rest(ask, pid):
    """Wait until a session has been idle for longer than 0.1 s."""
    idle = (
        "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'ClientRead' AND"
        " clock_timestamp() - state_change > interval '0.12 s'"
    )
    until(lambda: ask(idle, [pid]))


@pytest.fixture
def commands(server, tmp_path):
    """Return a function that runs commands of a project with the page's settings."""

    def run(port, commands):
        (settings,) = blocks(PAGE, "python")
        text = settings.text.replace("10.0.0.5", "127.0.0.1").replace("6432", str(port))
        (tmp_path / "shop_settings.py").write_text(
            "import os\nSECRET_KEY = 'only for tests'\nINSTALLED_APPS = ['conn_guard']\n"
            "MIDDLEWARE = ['conn_guard.middleware.ConnectionGuardMiddleware']\n"
            + text.replace("5432", str(server.port))
        )
        words = [line.split()[2:] for line in commands]
        (tmp_path / "run_all.py").write_text(
            "from django.core.management import execute_from_command_line\n"
            f"for words in {words!r}:\n    execute_from_command_line(['manage.py', *words])\n"
        )
        path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])
        return subprocess.run(
            [sys.executable, "run_all.py"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "DJANGO_SETTINGS_MODULE": "shop_settings",
                "SHOP_PASSWORD": "change-me",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_the_settings_of_the_page_pass_every_check(pooler, commands):
    done = commands(pooler().port, lines(PAGE))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "System check identified no issues (0 silenced).\n" * 2


def test_the_reaper_of_the_page_connects_directly_and_spares_the_pool(ask, pooler, commands):
    running = pooler()
    client = running.client()
    (direct,) = lines(PAGE, "sh", "direct")
    through = direct.replace("--database direct", "--database default")
    refused = commands(running.port, [through])
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "pooler" in refused.stderr
    rest(ask, client.execute("SELECT pg_backend_pid()")[0][0])
    # PgBouncer runs on this host, so the address is this host's.
    command = direct.replace("10.0.0.7", "127.0.0.1") + " --idle-for 0.1s --format json"
    done = commands(running.port, [command])
    assert done.returncode == 0, done.stderr
    assert '"reason": "excluded"' in done.stdout
    assert client.execute("SELECT 1") == [(1,)]


def test_clients_at_rest_survive_a_reaper_that_ends_their_session(pooler, make_engine, server, ask):
    running = pooler()
    client = running.client()
    ((before,),) = client.execute("SELECT pg_backend_pid()")
    address = {**running.settings, "PORT": str(server.port)}
    direct = make_engine(engine=STOCK, **address)
    rest(ask, before)
    assert reap("--database", direct.name, "--idle-for", "0.1s").exit_code == 0
    until(lambda: not ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [before]))
    assert client.execute("SELECT pg_backend_pid()") != [(before,)]


# Load


@pytest.fixture(scope="module")
def stage(server, tmp_path_factory):
    """The example project, whose database is behind the page's PgBouncer."""
    for name in ("httpx", "uvicorn", "environ"):
        pytest.importorskip(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        from demo.stage import Stage

        folder = tmp_path_factory.mktemp("example")
        # The console's connection needs a place of its own.
        with running(server, max_client_conn=CLIENTS + 10) as pooler:
            path = os.pathsep.join([str(ROOT / "src"), *(each for each in sys.path if each)])
            environment = {
                **os.environ,
                "ALLOWED_HOSTS": "127.0.0.1",
                "DATABASE_URL": f"postgres://shop:change-me@127.0.0.1:{pooler.port}/shop",
                "DEBUG": "false",
                "DJANGO_SETTINGS_MODULE": "example.settings",
                "MEDIA_ROOT": str(folder / "media"),
                "PYTHONPATH": path,
                "SECRET_KEY": "only for tests",
                "SEED_PASSWORD": "annotator",
                "SENDFILE_BACKEND": "nginx",
            }
            stage = Stage(server.url(), "shop", CLIENTS, "", folder, environment)
            for command in ("migrate", "seed"):
                done = stage.manage(command, "-v0")
                assert done.returncode == 0, done.stderr
            yield stage, pooler


@pytest.mark.parametrize("guard", ["off", "middleware"])
def test_five_hundred_clients_share_at_most_fifty_server_sessions(stage, ask, guard):
    stage, pooler = stage
    from demo.traffic import asset_paths

    most = 0
    with stage.serve(guard) as site, ThreadPoolExecutor(1) as pool:
        paths = asset_paths(site)
        # All clients wait at PgBouncer at the same moment, whatever the speed of this machine.
        pooler.console.ask("PAUSE")
        try:
            answers = pool.submit(asyncio.run, download(site, paths))
            until(lambda: pooler.console.pool()["cl_waiting"] >= CLIENTS, timeout=25)
        finally:
            pooler.console.ask("RESUME")
        while not answers.done():
            most = max(most, ask(SESSIONS)[0][0])
        assert Counter(answers.result()) == {200: CLIENTS}
        if guard == "off":
            assert pooler.console.clients() > 0
        else:
            until(lambda: pooler.console.clients() == 0)
    assert 1 <= most <= 50
    until(lambda: pooler.console.clients() == 0)


async def download(site, paths):
    """Return the statuses of CLIENTS requests that are sent at once."""

    async def ask(path):
        reader, writer = await asyncio.open_connection(site.url.host, site.url.port)
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        writer.write(f"{head}Authorization: {site.headers['Authorization']}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1])

    return await asyncio.gather(*(ask(paths[i % len(paths)]) for i in range(CLIENTS)))


def page():
    return (ROOT / "docs" / "how-to" / f"{PAGE}.md").read_text(encoding="utf-8")
