"""Measures one cell of the matrix: a server, its requests, and a count from outside."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.leaks.clients import Address, ask, load
from tests.leaks.mechanisms import MECHANISMS
from tests.leaks.servers import SERVERS, Server

ROOT = Path(__file__).parents[2]
START_WITHIN = 60
STEP = 0.05
# leaky_site's pool gives up one idle connection every 0.3 s, of ten.
POOL_SHRINKS_WITHIN = 6
# leaky_site asks the engine to close what is unused for a second.
ENGINE_CLOSES_WITHIN = 3

# Sessions of one application_name, which is the cell's own: no other session, the harness's
# included, can be among them.
COUNT = """
SELECT
    count(*) FILTER (WHERE state NOT LIKE 'idle in transaction%%'),
    count(*) FILTER (WHERE state LIKE 'idle in transaction%%')
FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name = %s
"""


class CellError(RuntimeError):
    """A cell could not be measured; the text names the log that tells why."""


@dataclass(frozen=True)
class Cell:
    """One measurement: what is driven, on which server, with which settings."""

    server: str
    mechanism: str
    setting: str
    column: str


@dataclass(frozen=True)
class Left:
    """Sessions that stayed: idle, and idle in transaction."""

    idle: int
    in_transaction: int

    @property
    def total(self) -> int:
        return self.idle + self.in_transaction

    def __str__(self) -> str:
        return f"{self.idle}+{self.in_transaction}tx" if self.in_transaction else str(self.idle)


@dataclass(frozen=True)
class Result:
    """What a cell left after its rest, and after a collection in the server; and answers other than
    expected.
    """

    left: Left
    left_after_collection: Left
    wrong_answers: int
    seconds: float

    def __str__(self) -> str:
        text = f"{self.left}/{self.left_after_collection}" if self.left.total else "0"
        return f"{text} !{self.wrong_answers}err" if self.wrong_answers else text


def measure(
    cell: Cell,
    database_url: str,
    *,
    python: str = sys.executable,
    requests: int = 50,
    concurrency: int = 5,
    rest: float = 2,
    collector: bool = True,
    logs: Path | None = None,
) -> Result:
    """Run *cell* in a server of its own and return what stayed.

    *rest*: seconds that the sessions have to go, at most; a pool and the engine have the time that
    they take as well. *collector*: whether Python's collector runs by itself in the server. *logs*:
    where the server's log is kept when the cell can't be measured."""
    began = time.monotonic()
    mechanism = MECHANISMS[cell.mechanism]
    name = f"leaks-{secrets.token_hex(8)}"
    # libpq reads no parameter that is meant for Django.
    database_url = database_url.partition("?")[0]
    environ = environment_of(cell, database_url, name, collector=collector)
    with (
        sessions(database_url) as count,
        serving(SERVERS[cell.server], python, environ, logs) as server,
    ):
        statuses = load(
            server.address,
            f"/{mechanism.name}/",
            requests=requests,
            concurrency=concurrency,
            leaves_early=mechanism.leaves_early,
        )
        server.wait_for_work()
        if cell.setting == "pool":
            rest += POOL_SHRINKS_WITHIN
        if cell.column == "engine":
            rest += ENGINE_CLOSES_WITHIN
        left = settle(lambda: count(name), rest)
        after = left
        if left.total:
            server.collect()
            after = settle(lambda: count(name), 1)
    return Result(left, after, _wrong(statuses, mechanism.answers), time.monotonic() - began)


def environment_of(
    cell: Cell, database_url: str, name: str, *, collector: bool = True
) -> dict[str, str]:
    """Return the environment of a process that serves leaky_site as *cell* asks, with sessions of
    that name.
    """
    foreign = ("LEAKS_", "PG", "DJANGO_", "COV")
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(foreign)},
        "LEAKS_DATABASE_URL": database_url,
        "LEAKS_APPLICATION_NAME": name,
        "LEAKS_COLUMN": cell.column,
        "LEAKS_SETTING": cell.setting,
        "LEAKS_GC": "on" if collector else "off",
        "DJANGO_SETTINGS_MODULE": "tests.leaks.leaky_site.settings",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        **SERVERS[cell.server].environ,
        **(MECHANISMS[cell.mechanism].environ if cell.mechanism in MECHANISMS else {}),
    }


def _wrong(statuses: Counter[int], expected: frozenset[int]) -> int:
    return sum(times for status, times in statuses.items() if status not in expected)


def settle(count: Callable[[], Left], within: float) -> Left:
    """Return what *count* gives once it is zero and stays so, or when *within* seconds are over."""
    deadline = time.monotonic() + within
    zeros = 0
    while True:
        left = count()
        zeros = 0 if left.total else zeros + 1
        if zeros == 3 or (left.total and time.monotonic() > deadline):
            return left
        time.sleep(STEP)


@contextmanager
def sessions(database_url: str) -> Iterator[Callable[[str], Left]]:
    """Yield a function that counts the sessions of an application_name, over one session of our
    own.
    """
    try:
        import psycopg as driver
    except ImportError:
        import psycopg2 as driver  # type: ignore[import-untyped, no-redef]

    connection = driver.connect(database_url, application_name="leaks:harness")
    connection.autocommit = True
    try:

        def count(name: str) -> Left:
            with connection.cursor() as cursor:
                cursor.execute(COUNT, [name])
                idle, in_transaction = cursor.fetchone()
                return Left(idle, in_transaction)

        yield count
    finally:
        connection.close()


class Serving:
    """A server that runs, and what can be asked of it."""

    def __init__(self, address: Address, processes: list[subprocess.Popen[bytes]]) -> None:
        self.address = address
        self.processes = processes

    def wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_WITHIN
        while True:
            if any(process.poll() is not None for process in self.processes):
                raise CellError("the server ended before it answered")
            with suppress(OSError):
                ask(self.address, "/control/")
                return
            if time.monotonic() > deadline:
                raise CellError(f"the server did not answer within {START_WITHIN} s")
            time.sleep(STEP)

    def wait_for_work(self, within: float = 10) -> None:
        """Wait until no process has work under way; what never ends is counted as it is."""
        deadline = time.monotonic() + within
        while (
            any(answer["under_way"] for answer in self._ask_each("/control/"))
            and time.monotonic() < deadline
        ):
            time.sleep(STEP)

    def collect(self) -> None:
        self._ask_each("/control/collect")

    def _ask_each(self, path: str) -> list[dict[str, int]]:
        """Ask until each process has answered: which one does is the kernel's choice."""
        answers: dict[int, dict[str, int]] = {}
        for _ in range(200 * len(self.processes)):
            answer = ask(self.address, path)
            answers[answer["pid"]] = answer
            if len(answers) == len(self.processes):
                break
        return list(answers.values())


@contextmanager
def serving(
    server: Server, python: str, environ: dict[str, str], logs: Path | None = None
) -> Iterator[Serving]:
    """Run *server* and yield it once it answers; its processes are ended for certain."""
    with (
        tempfile.TemporaryDirectory(prefix="leaks-") as folder,
        open(Path(folder) / "log", "w+b") as log,
    ):
        listening, address = _address(server, folder)
        try:
            processes = [
                subprocess.Popen(
                    server.command(python, address.port),
                    env=environ,
                    cwd=folder,
                    start_new_session=True,
                    stdin=listening or subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
                for _ in range(server.processes)
            ]
        finally:
            if listening:
                listening.close()
        running = Serving(address, processes)
        try:
            running.wait_until_it_answers()
            yield running
        except (CellError, OSError) as error:
            raise CellError(f"{server.name}: {error}; {_keep(Path(log.name), logs)}") from error
        finally:
            _end(processes)


def _address(server: Server, folder: str) -> tuple[socket.socket | None, Address]:
    if server.shared_socket:
        path = f"{folder}/socket"
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen(128)
        return listening, Address(path=path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return None, Address(port=free.getsockname()[1])


def _keep(log: Path, folder: Path | None) -> str:
    text = log.read_text(errors="replace")
    if folder is None:
        return "its log ends:\n" + text[-3000:]
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{secrets.token_hex(4)}.log"
    kept.write_text(text)
    return f"its log is {kept}"


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the processes and what they started: politely, and then for certain."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + 3
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
        # Its session is its own, so the group holds its children and nobody else.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
