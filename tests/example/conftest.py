"""The example's stage, and its processes, found by a mark in their environment."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

CHECKOUT = Path(__file__).parents[2]
MANAGE = CHECKOUT / "example_project" / "manage.py"
MARK = "EXAMPLE_TEST_MARK"


@pytest.fixture(scope="session", autouse=True)
def importable() -> Iterator[None]:
    """Make the example importable in this process, and conn_guard in the example's processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(MANAGE.parent)
        known = os.environ.get("PYTHONPATH")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([str(CHECKOUT / "src"), *([known] if known else [])])
        )
        yield


@pytest.fixture(scope="session")
def stage(importable, django_db_blocker):
    """A role and a database for the example on the server of the tests, with seed data."""
    from demo.stage import set_stage

    with ExitStack() as stack:
        with django_db_blocker.unblock():
            set_up = stack.enter_context(set_stage())
        yield set_up
        with django_db_blocker.unblock():
            stack.close()


@pytest.fixture
def past_django(django_db_blocker) -> Iterator[None]:
    """Allow connections that belong to no alias of the project; pytest-django can't tell them."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture
def sessions(stage, past_django) -> Iterator[Callable[[], int]]:
    """Return a function that counts the example's sessions over a session of its own."""
    from demo.meter import Meter

    with Meter(stage) as meter:
        yield meter.settled


@pytest.fixture
def ask_operator(stage, past_django) -> Iterator[Callable[[str], list[tuple]]]:
    """Return a function that runs a statement as the operator and returns its rows."""
    from demo.stage import connect

    operator = connect(stage.operator_url, "example:operator")

    def ask(statement: str) -> list[tuple]:
        with operator.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    yield ask
    operator.close()


@pytest.fixture(scope="session")
def client_of() -> Callable[[httpx.Request], httpx.Client]:
    """Return a function that makes a client for the request that a served stage gives."""
    return lambda server: httpx.Client(
        base_url=server.url, headers=server.headers, timeout=30, trust_env=False
    )


@pytest.fixture
def manage(tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts a command of the example.

    Its keywords override environment variables; None removes one.
    """
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str | None) -> subprocess.Popen[str]:
        known = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1", **environment}
        process = subprocess.Popen(
            [sys.executable, str(MANAGE), *arguments],
            cwd=tmp_path,
            env={
                name: value
                for name, value in known.items()
                if value is not None and name != "DJANGO_SETTINGS_MODULE"
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def marked(mark) -> Callable[[], dict[int, Path]]:
    """Return a function that finds the processes with the mark, and the folder of each."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("the processes of this system can't be asked for their environment")

    def find() -> dict[int, Path]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cwd").readlink()
            except OSError:
                continue
        return found

    return find
