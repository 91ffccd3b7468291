"""The time until a new client gets in, after leaked sessions have taken every slot."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Cells, spread
from benchmarks.peers import PeerError, Project, pgactivity, project, wait, wait_for_reaper
from benchmarks.tables.table import Chart, Column, Figures, Measured, Size, Table, reason
from tools.local_postgres import LocalPostgres

SLOTS = 15
CRON = 5
LIMIT = 15
NAME = "shop"
NOTHING = "nothing"
TIMEOUT = "`idle_session_timeout`"
EVERY = "`idle_reaper --every 1s`, logged in before"
CRON_APP = "`idle_reaper` from cron, the application's role"
CRON_RESERVED = "`idle_reaper` from cron, a role with reserved slots"
CRON_PEER = "`pgactivity` from cron, a role with reserved slots"
LEFT = "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('app', 'reaper')"
ROUNDS = {NOTHING: 1, TIMEOUT: 5, EVERY: 5, CRON_APP: 1, CRON_RESERVED: 4, CRON_PEER: 4}


def rows(size: Size) -> list[str]:
    return [TIMEOUT] if size is Size.TRIAL else [*ROUNDS]


def measure(size: Size) -> Iterator[Measured]:
    import psycopg

    idle = 0.3 if size is Size.TRIAL else 2
    with (
        # Beside the slots there are three reserved ones, the reaper's two, and the superuser's.
        LocalPostgres(max_connections=SLOTS + 6, settings={"reserved_connections": 2}) as server,
        tempfile.TemporaryDirectory() as folder,
        psycopg.connect(server.url(), autocommit=True) as superuser,
    ):
        bench = _Bench(server, superuser, Path(folder), idle)
        base: list[float] = []
        for name in rows(size):
            taken: list[float] = []
            rounds = 1 if size is Size.TRIAL else ROUNDS[name]
            for number in range(rounds):
                try:
                    # Cron's minute begins at any time after the server is full.
                    seconds = bench.seconds(name, CRON * (number + 0.5) / rounds)
                except Exception as error:  # noqa: BLE001 - the other rows are measured
                    yield name, {"failed": reason(error)}
                    break
                if seconds is None:
                    yield name, {"seconds": f"not within {LIMIT} s", "n": number + 1}
                    break
                taken.append(seconds)
                if name == TIMEOUT:
                    base = taken
                yield name, _cells(taken, base)


def _cells(taken: list[float], base: list[float]) -> Cells:
    cells: Cells = {"seconds": spread(taken), "n": len(taken)}
    if base:
        cells["ratio"] = spread(taken)["median"] / spread(base)["median"]
    return cells


class _Bench:
    """A server with the roles of an application and of a reaper, and ways to recover."""

    def __init__(self, server: LocalPostgres, superuser: Any, folder: Path, idle: float) -> None:
        self._server, self._folder, self._idle = server, folder, idle
        self._ask = superuser.execute
        self._ask("CREATE ROLE app LOGIN")
        self._ask("CREATE ROLE reaper LOGIN")
        self._ask(
            "GRANT pg_signal_backend, pg_read_all_stats, pg_use_reserved_connections TO reaper"
        )

    def seconds(self, name: str, phase: float) -> float | None:
        """Return the seconds from full to a new client's login, or None after LIMIT seconds."""
        # A slot that is still being given up would let a client in.
        wait(lambda: self._ask(LEFT).fetchone()[0] == 0, "the last round's sessions did not leave")
        with ExitStack() as stack:
            tick = self._set_up(name, stack, phase)
            held = self._fill(stack)
            if not held:
                raise PeerError("the server could not be filled")
            full = time.monotonic()
            while time.monotonic() - full < LIMIT:
                if tick:
                    tick(time.monotonic() - full)
                if client := self._log_in():
                    seconds = time.monotonic() - full
                    client.close()
                    return seconds
                time.sleep(0.02)
            return None

    def _set_up(
        self, name: str, stack: ExitStack, phase: float
    ) -> Callable[[float], object] | None:
        threshold = ("--idle-for", f"{self._idle:g}s", "-v", "0")
        if name == TIMEOUT:
            self._ask(f"ALTER ROLE app SET idle_session_timeout = '{self._idle * 1000:.0f}ms'")
            stack.callback(self._ask, "ALTER ROLE app RESET idle_session_timeout")
        elif name == EVERY:
            stack.enter_context(
                self._project("app").running("idle_reaper", *threshold, "--every", "1s")
            )
            wait_for_reaper(self._ask)
        elif name == CRON_APP:
            return self._cron(stack, self._project("app"), phase, "idle_reaper", *threshold)
        elif name == CRON_RESERVED:
            words = ("idle_reaper", *threshold, "--user", "app")
            return self._cron(stack, self._project("reaper"), phase, *words)
        elif name == CRON_PEER:
            peer = self._project("reaper", app="pgactivity", python=pgactivity())
            age = f"duration__gt={self._idle * 1000:.0f} milliseconds"
            # Without a name it would try the superuser's session, and end none after the refusal.
            filters = ("state=IDLE", f"application_name={NAME}", age)
            flags = [word for each in filters for word in ("-f", each)]
            return self._cron(stack, peer, phase, "pgactivity", *flags, "--terminate", "--yes")
        return None

    def _project(self, user: str, **own: str) -> Project:
        name = f"bench_{user}_{own.get('app', 'ours')}"
        databases = {"default": {"USER": user, "PORT": self._server.port}}
        return project(self._folder, name, databases, **own)

    def _cron(
        self, stack: ExitStack, of: Project, phase: float, *words: str
    ) -> Callable[[float], None]:
        """Return a function that starts the command at *phase*, and every CRON seconds."""
        started: list[subprocess.Popen[str]] = []

        def end() -> None:
            for each in started:
                each.terminate()
                each.communicate(timeout=20)

        def tick(seconds: float) -> None:
            if seconds >= phase + CRON * len(started):
                started.append(of.start(*words))

        stack.callback(end)
        return tick

    def _fill(self, stack: ExitStack) -> int:
        """Take every slot that is left; return how many these were."""
        for taken in range(SLOTS + 5):
            client = self._log_in()
            if client is None:
                return taken
            stack.callback(client.close)
        raise PeerError("the server has more slots than expected")

    def _log_in(self) -> Any:
        import psycopg

        try:
            client = psycopg.connect(
                self._server.url(user="app"),
                connect_timeout=10,
                autocommit=True,
                application_name=NAME,
            )
        except psycopg.OperationalError:
            return None
        # Without a statement a session has no age of its last one, by which pgactivity chooses.
        client.execute("SELECT 1")
        return client


def says(of: Figures) -> str:
    timeout, every, cron = (of(row, "seconds") for row in (TIMEOUT, EVERY, CRON_RESERVED))
    try:
        without = of.word(CRON_APP, "seconds")
    except KeyError:
        without = f"after {of(CRON_APP, 'seconds'):.1f} seconds"
    return (
        f"`idle_session_timeout` lets the next client in after {timeout:.1f} seconds and is the"
        " quickest and simplest, where sessions logged in after it was set.\n"
        f"A reaper that is logged in follows after {every:.1f} seconds, and one from cron after"
        f" {cron:.1f}, if its role has reserved slots.\n"
        f"With the application's own role, from cron: {without}, because that role can't log in to"
        " a full server.\n"
        "So reserve slots for the reaper's role, or keep a reaper logged in."
    )


TABLE = Table(
    name="recovery",
    title="Recovery from a full server",
    about=(
        f"Leaked sessions take all {SLOTS} slots of the application's role, and are never used"
        " again.\n"
        "A new client tries to log in until it succeeds; the time begins when the last slot is"
        " taken.\n"
        f"Sessions are due after 2 seconds in every row, and cron runs every {CRON} seconds"
        " instead of every minute, beginning at times that are spread evenly.\n"
        f"A row ends after {LIMIT} seconds."
    ),
    first="what recovers",
    columns=(
        Column("ratio", "ratio to `idle_session_timeout`", ".2f"),
        Column("seconds", "seconds until a client gets in", ".2f"),
        Column("n", "n"),
    ),
    rows=rows,
    measure=measure,
    says=says,
    chart=Chart("seconds", "Seconds from a full server to the next login", ".1f"),
    within=140,
    packages=("Django", "psycopg", "django-pgactivity"),
)
