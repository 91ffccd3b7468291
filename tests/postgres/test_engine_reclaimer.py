"""The reclaimer's thread: its deadlines, its errors and its end."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from conn_guard.engine import reclaimer

ROOT = Path(__file__).resolve().parent.parent.parent


class Due:
    """An object that is due after given delays and records when the reclaimer checked it."""

    def __init__(self, *delays):
        self.delays = list(delays)
        self.checked = []

    def check_due(self, now):
        self.checked.append(now)
        if not self.delays:
            return math.inf
        delay = self.delays.pop(0)
        if isinstance(delay, Exception):
            raise delay
        return now + delay

    def leave_to_parent(self):
        pass


@pytest.fixture
def add(until):
    added = []

    def add_due(*delays, due_in=0.0):
        each = Due(*delays)
        added.append(each)
        reclaimer.register(id(each), each, due_at=time.monotonic() + due_in, submits_jobs=False)
        return each

    yield add_due
    for each in added:
        reclaimer.unregister(id(each))


def test_the_reclaimer_wakes_when_an_object_is_due_and_not_before(add, until):
    far, near = add(due_in=math.inf), add(0.05, 0.05)
    until(lambda: len(near.checked) >= 3)
    before = len(far.checked)
    assert reclaimer._state.wakes_at == math.inf, "it sleeps without a timeout when nothing is due"
    add()
    until(lambda: len(far.checked) > before)


def test_the_reclaimer_outlives_an_error(add, until, caplog):
    failing = add(ValueError("on purpose"))
    until(lambda: failing.checked)
    until(lambda: "The reclaimer could not check a connection." in caplog.messages)
    done = threading.Event()
    reclaimer.submit(lambda: 1 / 0)
    reclaimer.submit(done.set)
    assert done.wait(10)
    assert "The reclaimer could not give a connection back." in caplog.messages


def run_script(script, **environment):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SITE = """
import django
from django.conf import settings
import tests.settings as site
default = {**site.DATABASES["default"], "CONN_MAX_AGE": None}
default["ENGINE"] = "conn_guard.engine.postgresql"
settings.configure(DATABASES={"default": default}, CONN_GUARD={"ENGINE_IDLE_FOR": SECONDS})
django.setup()
from django.db import connection

def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()
"""


@pytest.mark.parametrize("idle_for", [0.05, 60])
def test_the_reclaimer_ends_with_its_process(idle_for):
    """Also if code at exit connects, and if only the engine is used and not the app."""
    script = "import atexit\natexit.register(lambda: print(reclaimer._state.thread.is_alive()))\n"
    script += SITE.replace("SECONDS", str(idle_for)) + "atexit.register(query)\nprint(query())\n"
    script += (
        "from conn_guard.engine import reclaimer\natexit.register(lambda: query() and"
        " connection.close())\n"
    )
    run = run_script(script + "connection.close()\n")
    assert (run.returncode, run.stdout, run.stderr) == (0, "(1,)\nFalse\n", "")


def test_without_a_limit_there_is_no_reclaimer():
    script = (
        SITE.replace("SECONDS", "None")
        + "import threading\nquery()\nprint(threading.active_count())\n"
    )
    assert run_script(script + "connection.close()\n").stdout == "1\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_with_no_open_connection_leaves_the_parent_one_thread_until_its_next_query():
    """Python 3.13 would warn of the fork of a process that has more threads after it."""
    script = (
        SITE.replace("SECONDS", "60")
        + """
import os, threading
def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return threading.active_count()
query()
connection.close()
print(fork())
query()
print(threading.active_count(), fork())
connection.close()
"""
    )
    assert run_script(script).stdout == "1\n2 2\n"


@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 needs psycogreen to work with gevent")
def test_under_gevent_the_reclaimer_is_a_greenlet_that_blocks_no_other():
    pytest.importorskip("gevent")
    script = "from gevent import monkey\nmonkey.patch_all()\n" + SITE.replace("SECONDS", "0.1")
    script += """
import gevent, threading, time
def work():
    assert query() == (1,)
    wrapper = connection._connections[connection._alias]
    deadline = time.monotonic() + 20
    while wrapper.connection is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert wrapper.connection is None
    assert query() == (1,)
    wrapper.close()
    return True
done = gevent.joinall([gevent.spawn(work) for _ in range(3)], timeout=30)
print([greenlet.value for greenlet in done])
from conn_guard.engine import reclaimer
print(reclaimer._state.thread.is_alive())
"""
    run = run_script(script)
    assert run.stdout == "[True, True, True]\nTrue\n", run.stderr
