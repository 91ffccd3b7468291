"""A forked child leaves its parent's sessions alone and opens its own."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import django
import pytest
from django.db import InterfaceError, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from conn_guard.engine import reclaimer
from conn_guard.engine.wrapper import GuardedWrapper
from tools.local_postgres import LocalPostgres

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    # The other threads are pytest's and the test's own: the reclaimer stops before a fork.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
ROOT = Path(__file__).resolve().parent.parent.parent


def fork_in_c():
    """Fork in C as uWSGI does, so that Python's fork hooks don't run.

    PyDLL keeps the lock of the interpreter during the call.
    """
    return ctypes.PyDLL(None).fork()


def in_child(function, fork=os.fork):
    """Run *function* in a forked child; return its result or its error as text.

    Python itself may hang in a child that was forked in C while another thread waited for the lock
    of the interpreter. Such a child is ended, and another one is forked.
    """
    for _ in range(3):
        read, write = os.pipe()
        child = fork()
        if child == 0:
            try:
                answer = str(function())
            except BaseException as error:  # noqa: BLE001
                answer = repr(error)
            os.write(write, answer.encode())
            os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            if select.select([pipe], [], [], 30)[0]:
                answer = pipe.read().decode()
                os.waitpid(child, 0)
                return answer
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    raise AssertionError("No child answered in 30 s.")


def test_a_child_gets_a_session_of_its_own_and_the_parent_keeps_its_own(guarded):
    parent = guarded.pid()
    child = int(in_child(guarded.pid))
    assert child != parent
    assert guarded.pid() == parent


@pytest.mark.parametrize("fork", [os.fork, fork_in_c])
def test_a_child_whose_parent_changed_its_role_is_told_once(guarded, fork):
    """Going on silently would give the child the rights of the login role."""
    guarded.query("SET ROLE pg_monitor")

    def ask_twice():
        with pytest.raises(InterfaceError, match="Close the connection before the fork"):
            guarded.query("SELECT current_user")
        return guarded.query("SELECT current_user")[0][0]

    assert in_child(ask_twice, fork) != "pg_monitor"
    assert guarded.query("SELECT current_user") == [("pg_monitor",)]


def test_a_child_that_closes_first_or_begins_a_request_is_not_told(guarded):
    guarded.query("SET ROLE pg_monitor")
    for name in ("close", "close_if_unusable_or_obsolete"):
        answer = in_child(lambda name=name: (getattr(guarded.wrapper, name)(), guarded.query())[1])
        assert answer == "[(1,)]"


def test_a_subclass_forgets_in_a_child_what_it_set_on_the_parents_session(guarded, monkeypatch):
    """django-tenants remembers in its wrapper that it has set the search_path."""
    forgotten = []
    monkeypatch.setattr(
        type(guarded.wrapper),
        "close",
        lambda self: (forgotten.append(1), GuardedWrapper.close(self)),
    )
    guarded.query()
    assert in_child(lambda: guarded.query() and len(forgotten)) != "0"
    assert not forgotten


@pytest.mark.parametrize("how", ["close", "close_if_unusable_or_obsolete", "drop", "close_all"])
def test_a_child_that_closes_ends_no_session_of_its_parent(guarded, how):
    parent = guarded.pid()

    def end():
        if how == "drop":
            del connections[guarded.name]
        elif how == "close_all":
            connections.close_all()
        else:
            getattr(guarded.wrapper, how)()
        return guarded.pid()

    assert int(in_child(end)) != parent
    assert guarded.pid() == parent


@pytest.mark.parametrize("rested", [True, False])
def test_a_child_that_is_forked_in_c_is_noticed_at_its_first_use(guarded, until, rested):
    parent = guarded.pid()
    used_at = guarded.wrapper.lease.used_at
    until(lambda: time.monotonic() - used_at > 0.01)

    def first_use():
        if not rested:
            # A forked process is slow at first, so "a moment ago" is set in the future.
            guarded.wrapper.lease.used_at = time.monotonic() + 1
        return guarded.pid()

    assert int(in_child(first_use, fork_in_c)) != parent
    assert guarded.pid() == parent


@pytest.mark.parametrize("how", ["close", "close_if_unusable_or_obsolete", "drop"])
def test_such_a_child_that_closes_ends_no_session_of_its_parent(guarded, how):
    parent = guarded.pid()

    def end():
        if how == "drop":
            del connections[guarded.name]
            gc.collect()
        else:
            getattr(guarded.wrapper, how)()
            assert guarded.wrapper.connection is None
        return guarded.query()

    assert in_child(end, fork_in_c) == "[(1,)]"
    assert guarded.pid() == parent


def test_a_session_ends_with_its_parent_though_a_child_lives_on(guarded, until):
    """A child's copy of the socket would keep the session of a killed parent open."""
    parent = guarded.pid()
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(told, b"!")
        time.sleep(30)
        os._exit(0)
    os.read(ready, 1)
    # As when the parent is killed: the socket closes without a message to the server.
    os.close(guarded.wrapper.connection.fileno())
    try:
        until(lambda: parent not in guarded.pids())
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        # The driver will close this file number again, which may belong to another file by then.
        os.dup2(ready, guarded.wrapper.connection.fileno())


def test_a_child_forked_inside_an_atomic_block_gets_the_error_until_the_block_is_left(
    guarded, table
):
    def child():
        insert = f"INSERT INTO {table} (n) VALUES (2)"
        try:
            guarded.query(insert)
        except django.db.Error:
            return "refused"
        return "written"

    with transaction.atomic(using=guarded.name):
        guarded.query(f"INSERT INTO {table} (n) VALUES (1)")
        assert in_child(child) == "refused"
        assert guarded.query(f"SELECT n FROM {table}") == [(1,)]
    assert guarded.query(f"SELECT n FROM {table}") == [(1,)]

    def leave():
        try:
            with transaction.atomic(using=guarded.name):
                if os.getpid() != parent:
                    raise KeyboardInterrupt
                return in_child(lambda: 1 / 0)
        except KeyboardInterrupt:
            return guarded.query()

    parent = os.getpid()
    assert leave() == "ZeroDivisionError('division by zero')"


def test_a_child_that_leaves_the_atomic_block_it_was_forked_in_may_query_again(guarded):
    read, write = os.pipe()
    child = None
    try:
        with transaction.atomic(using=guarded.name):
            guarded.query()
            child = os.fork()
            if child == 0:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        try:
            os.write(write, str(guarded.query()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == b"[(1,)]"
    os.waitpid(child, 0)


@pytest.mark.parametrize("fork", [os.fork, fork_in_c])
def test_the_reclaimer_works_in_the_parent_and_in_the_child(
    make_engine, settings, until, worker, fork
):
    settings.CONN_GUARD = {"ENGINE_IDLE_FOR": 0.1}
    alias = make_engine(CONN_MAX_AGE=None)
    parent = worker(alias.pid)
    thread = reclaimer._state.thread

    def child():
        alias.query()
        deadline = time.monotonic() + 10
        while alias.wrapper.connection is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        return alias.wrapper.connection, reclaimer._state.thread is thread

    assert in_child(child, fork) == "(None, False)"
    assert thread.is_alive() is (fork is fork_in_c), "it is away while Python forks"
    until(lambda: parent not in alias.pids())


@pytest.mark.skipif(
    django.VERSION < (5, 1) or not is_psycopg3, reason="Django's pool came with 5.1, for psycopg 3"
)
def test_a_child_gets_a_pool_of_its_own(make_engine):
    alias = make_engine(options={"pool": {"min_size": 2, "max_size": 2, "timeout": 5}})
    alias.query()
    alias.wrapper.close()
    assert alias.becomes(2)
    parents, pool = alias.pids(), alias.wrapper.pool

    def child():
        alias.wrapper.close_pool()
        return alias.pid(), alias.wrapper.pool is not pool

    pid, is_new = eval(in_child(child))
    assert is_new
    assert pid not in parents
    assert alias.pid() in parents


# Real servers that fork

SITE = """
import os
import django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path
import environ

address = environ.Env.db_url_config(os.environ["ENGINE_ADDRESS"])
address = {**address, "ENGINE": "conn_guard.engine.postgresql", "CONN_MAX_AGE": None}
settings.configure(
    SECRET_KEY="tests", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, DATABASES={"default": address},
    MIDDLEWARE=[],
    INSTALLED_APPS=["conn_guard"],
)
django.setup()
from django.core.wsgi import get_wsgi_application
from django.db import connection

def pid(_=None):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]

urlpatterns = [path("", lambda request: HttpResponse(f"{os.getpid()} {pid()} {PARENT}"))]
application = get_wsgi_application()
PARENT = pid()
"""


@pytest.fixture
def site(tmp_path):
    """A site that queries at import, on a PostgreSQL server of its own."""
    (tmp_path / "forking_site.py").write_text(SITE)
    with LocalPostgres(max_connections=20) as server:
        paths = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "src")])
        yield {**os.environ, "PYTHONPATH": paths, "ENGINE_ADDRESS": server.url()}


def run_script(script, environment):
    command = [sys.executable, "-W", "error:This process:DeprecationWarning", "-c", script]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=90, check=False
    )


def test_gunicorn_with_preload(site, until, tmp_path):
    pytest.importorskip("gunicorn")
    bound = tmp_path / "bound"
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--preload",
        "-w",
        "2",
        "-b",
        "127.0.0.1:0",
        "forking_site:application",
    ]
    with open(bound, "w") as log:
        server = subprocess.Popen(command, env=site, stderr=log)
    try:
        until(lambda: "Listening at" in bound.read_text(), timeout=30)
        address = bound.read_text().partition("Listening at: ")[2].split()[0]

        def fetch():
            with urllib.request.urlopen(address, timeout=20) as response:
                return tuple(map(int, response.read().split()))

        answers: set[tuple[int, ...]] = set()
        until(
            lambda: answers.add(fetch()) or len({answer[0] for answer in answers}) == 2, timeout=30
        )
    finally:
        server.terminate()
        server.wait(20)
    assert len(answers) == 2, "each worker has one session, and keeps it"
    sessions = {session for _, session, _ in answers}
    assert len(sessions) == 2
    assert not sessions & {parent for _, _, parent in answers}


def test_multiprocessing(site):
    script = """
import multiprocessing
from forking_site import PARENT, pid
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sessions = set(pool.map(pid, range(20), chunksize=1))
    print(PARENT not in sessions, len(sessions) in (1, 2), pid() == PARENT)
"""
    run = run_script(script, site)
    assert (run.stdout, run.stderr) == ("True True True\n", "")


def test_celerys_prefork_pool(site, until, tmp_path):
    pytest.importorskip("celery")
    (tmp_path / "forking_tasks.py").write_text(
        "import os\nfrom celery import Celery\nfrom forking_site import PARENT, pid\napp ="
        f" Celery(broker='filesystem://', backend='file://{tmp_path}')\nfolders ="
        " {'data_folder_in': os.environ['BROKER'], 'data_folder_out':"
        " os.environ['BROKER']}\napp.conf.broker_transport_options = {**folders,"
        " 'control_folder': os.environ['BROKER']}\n@app.task\ndef session():\n    return"
        " os.getpid(), pid(), PARENT\n"
    )
    environment = {**site, "BROKER": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "forking_tasks",
        "worker",
        "-c",
        "2",
        "--without-mingle",
        "--without-gossip",
    ]
    with open(tmp_path / "log", "w") as log:
        worker = subprocess.Popen(command, env=environment, stderr=log, stdout=log, cwd=tmp_path)
    script = """
from forking_tasks import session
results = [session.delay() for _ in range(20)]
answers = [result.get(timeout=40) for result in results]
sessions = {pid for _, pid, _ in answers}
parents = {parent for _, _, parent in answers}
print(not sessions & parents, len(sessions) >= len({worker for worker, _, _ in answers}))
"""
    try:
        run = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            cwd=tmp_path,
        )
        assert run.stdout == "True True\n", run.stderr + (tmp_path / "log").read_text()
    finally:
        worker.terminate()
        worker.wait(30)
