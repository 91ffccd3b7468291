"""Sessions and failed requests while a leaking view is under load."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import Cells, spread
from benchmarks.peers import pgbouncer, project, wait_for_reaper
from benchmarks.tables.table import Chart, Column, Figures, Measured, Size, Table, reason
from tests.leaks.clients import Address, load
from tests.leaks.harness import Cell, Left, environment_of, serving, settle
from tests.leaks.servers import SERVERS
from tools.local_postgres import LocalPostgres

SLOTS = 60
RATE = 40
SECONDS = 5
REST = 4
ORDINARY = "/sync_query/"
"""A view that does not leak: a leak in a thread makes no request of its own fail."""
COUNT = """
SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = 'app'
    AND application_name NOT LIKE 'conn_guard:%'
"""


@dataclass(frozen=True)
class Variant:
    """A column of the leaking site, what stands around it, and the view."""

    column: str = "django"
    setting: str = "0"
    around: str = ""
    view: str = "traceback_kept"


KEPT, DOWNLOAD = "a kept traceback", "a download"
SET_UPS = {
    "Django alone": Variant(),
    "`CONN_MAX_AGE = 60`": Variant(setting="60"),
    "Django's pool": Variant(setting="pool"),
    "PgBouncer in front": Variant(around="pgbouncer"),
    "`idle_session_timeout = 1s`": Variant(around="timeout"),
    "`idle_reaper --every 1s`": Variant(around="reaper"),
    "conn_guard: app": Variant("app"),
    "conn_guard: app, middleware": Variant("middleware"),
    "conn_guard: app, middleware, engine": Variant("engine"),
}
OF_A_DOWNLOAD = ("Django alone", "`CONN_MAX_AGE = 60`", "Django's pool", "conn_guard: app")
VARIANTS = {f"{KEPT}, {name}": each for name, each in SET_UPS.items()} | {
    f"{DOWNLOAD}, {name}": replace(SET_UPS[name], view="x_accel_redirect") for name in OF_A_DOWNLOAD
}


def rows(size: Size) -> list[str]:
    return [*VARIANTS][:2] if size is Size.TRIAL else [*VARIANTS]


def measure(size: Size) -> Iterator[Measured]:
    seconds, rounds = (1, 1) if size is Size.TRIAL else (SECONDS, 3)
    taken: dict[str, list[dict[str, int]]] = {name: [] for name in rows(size)}
    # Three slots are reserved, and two are for the sessions that count.
    with LocalPostgres(max_connections=SLOTS + 5) as server:
        with _superuser(server) as ask:
            ask("CREATE ROLE app LOGIN")
        for _ in range(rounds):
            for name, found in taken.items():
                try:
                    found.append(_run(server, VARIANTS[name], seconds))
                except Exception as error:  # noqa: BLE001 - the other rows are measured
                    if not found:
                        yield name, {"failed": reason(error)}
                    continue
                yield name, _cells(found)


def _cells(found: list[dict[str, int]]) -> Cells:
    keys = ("failed", "peak", "left", "clients_left", "requests")
    cells: Cells = {
        key: spread([each[key] for each in found]) if key in found[0] else None for key in keys
    }
    return {**cells, "n": len(found)}


@contextmanager
def _superuser(server: LocalPostgres) -> Iterator[Callable[[str], Any]]:
    import psycopg

    with psycopg.connect(server.url(), autocommit=True) as connection:
        yield connection.execute


def _run(server: LocalPostgres, variant: Variant, seconds: float) -> dict[str, int]:
    with ExitStack() as stack:
        ask = stack.enter_context(_superuser(server))
        url, clients = _around(stack, server, variant, ask)
        name = "leaks-bench"
        environ = environment_of(
            Cell("uvicorn", variant.view, variant.setting, variant.column), url, name
        )
        site = stack.enter_context(serving(SERVERS["uvicorn"], sys.executable, environ))
        with _peak(server) as peak:
            statuses = _drive(site.address, f"/{variant.view}/", seconds)
        left = settle(lambda: Left(ask(COUNT).fetchone()[0], 0), REST)
        answer = {
            "requests": sum(statuses.values()),
            "failed": sum(times for status, times in statuses.items() if status != 200),
            "peak": peak[0],
            "left": left.total,
        }
        if clients:
            answer["clients_left"] = clients()
    return answer


def _around(
    stack: ExitStack, server: LocalPostgres, variant: Variant, ask: Callable[[str], Any]
) -> tuple[str, Callable[[], int] | None]:
    """Set up what stands around the site; return its URL and a count of the pooler's clients."""
    url = server.url(user="app")
    if variant.around == "timeout":
        ask("ALTER ROLE app SET idle_session_timeout = '1s'")
        stack.callback(ask, "ALTER ROLE app RESET idle_session_timeout")
    elif variant.around == "reaper":
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reaping = project(folder, "bench_load", {"default": {"USER": "app", "PORT": server.port}})
        words = ("idle_reaper", "--idle-for", "1s", "--every", "1s", "-v", "0")
        stack.enter_context(reaping.running(*words))
        wait_for_reaper(ask)
    elif variant.around == "pgbouncer":
        pgbouncer()
        from tests.support import programs

        address = {"USER": "app", "PASSWORD": "", "HOST": "127.0.0.1", "PORT": server.port}
        limits = {"default_pool_size": 20, "max_client_conn": 500, "server_idle_timeout": 1}
        pooler = stack.enter_context(programs.pgbouncer(address, "transaction", **limits))
        console = stack.enter_context(_console(pooler.url("pgbouncer")))
        return pooler.url("postgres"), console
    return url, None


@contextmanager
def _console(url: str) -> Iterator[Callable[[], int]]:
    """Yield a function that counts PgBouncer's clients."""
    import psycopg
    from psycopg.rows import dict_row

    # The console doesn't speak the extended protocol.
    with psycopg.connect(
        url, autocommit=True, prepare_threshold=None, row_factory=dict_row
    ) as connection:
        yield lambda: sum(
            row["cl_active"] + row["cl_waiting"]
            for row in connection.execute("SHOW POOLS").fetchall()
            if row["database"] == "postgres"
        )


@contextmanager
def _peak(server: LocalPostgres) -> Iterator[list[int]]:
    """Yield a list whose only element is the peak of sessions during the block."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        with _superuser(server) as ask:
            while not done.wait(0.05):
                peak[0] = max(peak[0], ask(COUNT).fetchone()[0])

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        done.set()
        watching.join()


def _drive(address: Address, path: str, seconds: float) -> Counter[int]:
    """Send RATE requests a second, whether earlier ones were answered or not; half go to *path*."""
    statuses: Counter[int] = Counter()
    began = time.monotonic()
    with ThreadPoolExecutor(64) as executor:
        sent = []
        for number in range(int(RATE * seconds)):
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))
            asked = path if number % 2 else ORDINARY
            sent.append(executor.submit(load, address, asked, requests=1, concurrency=1))
        for each in sent:
            statuses += each.result()
    return statuses


def says(of: Figures) -> str:
    def told(name: str) -> str:
        row = f"{KEPT}, {name}"
        peak, failed, left = (of(row, key) for key in ("peak", "failed", "left"))
        return f"peak {peak:.0f}, failed requests {failed:.0f}, left {left:.0f}"

    pooled = "PgBouncer in front"
    clients = of(f"{KEPT}, {pooled}", "clients_left")
    pool = of(f"{DOWNLOAD}, Django's pool", "failed")
    return (
        f"With a kept traceback and {of(f'{KEPT}, Django alone', 'requests'):.0f} requests, Django"
        f" alone: {told('Django alone')}; app and middleware:"
        f" {told('conn_guard: app, middleware')}.\n"
        f"PgBouncer in front: {told(pooled)}, while {clients:.0f} leaked connections keep their"
        " places among its clients.\n"
        "The server's own timeout, without any change to the project:"
        f" {told('`idle_session_timeout = 1s`')}; one second is too short for most projects, and"
        " more sessions pile up within a longer one.\n"
        f"Django's pool bounds the sessions, but {pool:.0f} requests fail when downloads leak:"
        " leaked connections never come back to it.\n"
        f"Downloads alone take Django to {of(f'{DOWNLOAD}, Django alone', 'peak'):.0f} sessions:"
        " Python's collector frees their connections after a while, at moments that can't be"
        " chosen."
    )


TABLE = Table(
    name="load",
    title="A leak under load",
    about=(
        "A kept traceback: a thread queries and fails, and an error tracker keeps the traceback;"
        " this fails no request of its own.\n"
        "A download leaks as CVAT's do: uvicorn's `send` raises after the view's query.\n"
        f"{RATE} requests a second arrive for {SECONDS} seconds: half of them for a leaking view,"
        " and half for one that only queries.\n"
        f"The server has {SLOTS} slots for the application.\n"
        f"*left* counts the sessions {REST} seconds after the last request.\n"
        "*left at the pooler* counts PgBouncer's clients then.\n"
        "Every timeout is one second here, so that it takes part within the run."
    ),
    first="leak and set-up",
    columns=(
        Column("failed", "failed requests"),
        Column("peak", "peak of sessions"),
        Column("left", "left"),
        Column("clients_left", "left at the pooler"),
        Column("requests", "requests"),
        Column("n", "n"),
    ),
    rows=rows,
    measure=measure,
    says=says,
    chart=Chart("peak", f"Peak of sessions under a leak, of {SLOTS} slots", ".0f"),
    within=400,
    packages=("Django", "psycopg", "uvicorn", "PgBouncer"),
)
