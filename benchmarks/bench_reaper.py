"""Measures how often a reaper ends a session that was executing, and how long the reaper takes.

    python benchmarks/bench_reaper.py race
    python benchmarks/bench_reaper.py race --sessions 300 --kills 2000 --methods naive,ours,command
    python benchmarks/bench_reaper.py race --methods ours,pgactivity --pgactivity ~/venv/bin/python
    python benchmarks/bench_reaper.py speed --sessions 100,500,1500

``race`` counts wrong kills and errors at clients; ``speed`` takes the time until all sessions have
ended. PG_BINDIR names the server's binaries, so each run measures one version.

Clients are idle for an exponential time and send one short statement: they are equally likely to
wake at every moment, so the result doesn't depend on the moment of the check. A hard wrong kill is
one where the server's log says that the backend was executing when it was ended. An error is one
that a client saw: a hard wrong kill, or a statement that was on its way to an idle session. The
methods take turns, so a busy machine slows all of them: trust the ratios of one run, not its
milliseconds.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import multiprocessing
import os
import random
import re
import resource
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tools.local_postgres import LocalPostgres  # noqa: E402

CLIENT = "bench-client"
WORK = "SELECT pg_sleep(0.005)"
WARM = "SELECT count(*) FROM pg_class"
FATAL = re.compile(
    r"\[(\d+)\] <([^>]*)>.*FATAL: +terminating connection due to"
    r" (?:administrator command|idle-session timeout)"
)

NAIVE = """
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
  AND application_name = %s AND state = 'idle'
  AND state_change < clock_timestamp() - %s * interval '1 second'
"""
LISTED = NAIVE.replace("pid, pg_terminate_backend(pid)", "pid")

SETTINGS = """
SECRET_KEY = "bench"
USE_TZ = True
INSTALLED_APPS = {apps!r}
DATABASES = {{"default": {{
    "ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "postgres",
    "HOST": "127.0.0.1", "PORT": {port},
}}}}
"""

Method = Callable[[float], None]
"""A function that ends the clients' sessions idle for so many seconds."""


class Client:
    """A client that speaks the protocol by hand: thousands fit into one process."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        names = {"user": "postgres", "database": "postgres", "application_name": CLIENT}
        pairs = b"".join(f"{name}\0{value}\0".encode() for name, value in names.items())
        self.socket.sendall(struct.pack("!II", len(pairs) + 9, 196608) + pairs + b"\0")
        self.received = b""
        while not self.is_ready:
            self.received += self.socket.recv(65536)
        key = self.received.index(b"K\0\0\0")
        self.pid: int = struct.unpack("!I", self.received[key + 5 : key + 9])[0]
        self.is_waiting = False
        self.serial = 0
        self.ask(WARM)
        while not self.is_ready:
            self.received += self.socket.recv(65536)
        self.is_waiting = False
        self.socket.settimeout(0)

    @property
    def is_ready(self) -> bool:
        return self.received[-6:-1] == b"Z\0\0\0\5"

    def ask(self, statement: str) -> None:
        body = statement.encode() + b"\0"
        self.received, self.is_waiting = b"", True
        self.socket.send(b"Q" + struct.pack("!I", len(body) + 4) + body)


def run_clients(port: int, count: int, rest: float, orders: Connection) -> None:
    """Keep *count* clients busy until told to stop; report the pids that were ended, and errors."""
    waiting = selectors.DefaultSelector()
    live: dict[Client, None] = {}
    wakes: list[tuple[float, int, Client]] = []
    ended: list[tuple[int, bool]] = []
    serial = 0

    def rest_now(client: Client) -> None:
        nonlocal serial
        serial += 1
        client.serial = serial
        heapq.heappush(wakes, (time.monotonic() + random.expovariate(1 / rest), serial, client))

    def bury(client: Client) -> None:
        ended.append((client.pid, client.is_waiting))
        waiting.unregister(client.socket)
        client.socket.close()
        del live[client]

    def read(client: Client) -> None:
        try:
            piece = client.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        client.received += piece
        if not piece or not client.is_waiting or client.received[:1] == b"E":
            bury(client)
        elif client.is_ready:
            client.is_waiting, client.received = False, b""
            rest_now(client)

    # A parent that was killed sends no order to stop, and its end of the pipe is open here too.
    parent = os.getppid()
    while os.getppid() == parent:
        if orders.poll():
            order = orders.recv()
            if order == "refill":
                while len(live) < count:
                    client = Client(port)
                    live[client] = None
                    waiting.register(client.socket, selectors.EVENT_READ, client)
                    rest_now(client)
                orders.send(None)
            elif order == "ended":
                orders.send(ended)
                ended = []
            else:
                return
        while wakes and wakes[0][0] <= time.monotonic():
            _, woken, client = heapq.heappop(wakes)
            if client not in live or client.serial != woken:
                continue
            read(client)  # what came while it rested is no error
            if client in live:
                try:
                    client.ask(WORK)
                except OSError:
                    client.is_waiting = False
                    bury(client)
        pause = min(0.01, max(0.0, wakes[0][0] - time.monotonic())) if wakes else 0.01
        for key, _ in waiting.select(pause):
            if key.data in live:
                read(key.data)


# Methods


def methods(names: list[str], port: int, folder: Path, pgactivity: str | None) -> dict[str, Method]:
    """Return the methods by name; a method that is a program is started for each run."""
    import django
    import psycopg
    from django.conf import settings

    (folder / "bench_ours.py").write_text(SETTINGS.format(port=port, apps=["conn_guard"]))
    (folder / "bench_peer.py").write_text(SETTINGS.format(port=port, apps=["pgactivity"]))
    namespace: dict[str, Any] = {}
    exec((folder / "bench_ours.py").read_text(), namespace)  # noqa: S102 - written three lines above
    if not settings.configured:
        settings.configure(**{name: value for name, value in namespace.items() if name.isupper()})
        django.setup()

    from conn_guard.sessions.policy import Policy
    from conn_guard.sessions.reaper import Reaper, RunOptions

    connection = psycopg.connect(
        f"host=127.0.0.1 port={port} user=postgres dbname=postgres", autocommit=True
    )

    def naive(idle: float) -> None:
        connection.execute(NAIVE, (CLIENT, idle)).fetchall()

    def list_then_kill(idle: float) -> None:
        for (pid,) in connection.execute(LISTED, (CLIENT, idle)).fetchall():
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))

    def timeout(idle: float) -> None:
        # Sessions take over the setting with their next statement. Ours must not end by it.
        connection.execute("SET idle_session_timeout = 0")
        connection.execute(f"ALTER SYSTEM SET idle_session_timeout = '{idle * 1000:.0f}ms'")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("SELECT pg_sleep(0.3)")
        connection.execute("ALTER SYSTEM RESET idle_session_timeout")
        connection.execute("SELECT pg_reload_conf()")

    def ours(idle: float) -> None:
        policy = Policy(idle_for=timedelta(seconds=idle), applications=(CLIENT,))
        with Reaper("default", policy, RunOptions()) as reaper:
            report = reaper.reap()
        if report.exit_code:
            raise RuntimeError(f"The reaper failed: {report.failure}")

    def program(*command: str, module: str) -> None:
        path = os.pathsep.join([str(folder), str(ROOT / "src")])
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": module, "PYTHONPATH": path}
        subprocess.run(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )

    def command(idle: float) -> None:
        arguments = (
            "idle_reaper",
            "--idle-for",
            f"{idle}s",
            "--application-name",
            CLIENT,
            "-v",
            "0",
        )
        program(sys.executable, "-m", "django", *arguments, module="bench_ours")

    def peer(idle: float) -> None:
        filters = (
            "state=IDLE",
            f"application_name={CLIENT}",
            f"duration__gt={idle * 1000:.0f} milliseconds",
        )
        flags = [part for each in filters for part in ("-f", each)]
        program(
            str(pgactivity),
            "-m",
            "django",
            "pgactivity",
            *flags,
            "--terminate",
            "--yes",
            module="bench_peer",
        )

    known = {
        "naive": naive,
        "list": list_then_kill,
        "timeout": timeout,
        "ours": ours,
        "command": command,
        "pgactivity": peer,
    }
    return {name: known[name] for name in names}


# Race


@dataclass
class Tally:
    """The results of a method: ended sessions, hard wrong kills, and errors at clients."""

    ended: int = 0
    hard: int = 0
    errors: int = 0
    seconds: list[float] = field(default_factory=list)

    def row(self, name: str) -> str:
        per_thousand = 1000 / max(self.ended, 1)
        return (
            f"| {name} | {self.ended} | {self.hard} | {self.hard * per_thousand:.2f} |"
            f" {self.errors} | {self.errors * per_thousand:.1f} |"
            f" {statistics.median(self.seconds) * 1000:.0f} |"
        )


def race(options: argparse.Namespace) -> None:
    major, tallies = 0, dict[str, Tally]()
    for major, tallies in raced(options):  # noqa: B007 - the last ones are printed
        pass
    print(
        f"PostgreSQL {major}, {options.sessions[0]} sessions, mean rest {options.rest} s, idle for"
        f" {options.idle} s\n"
    )
    print(
        "| method | ended | hard wrong kills | per 1,000 | errors at clients | per 1,000 | ms a"
        " round |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, tally in tallies.items():
        print(tally.row(name), flush=True)


def raced(options: argparse.Namespace) -> Iterator[tuple[int, dict[str, Tally]]]:
    """Yield the server's major version and all tallies after each round of each method."""
    count = options.sessions[0]
    with (
        LocalPostgres(max_connections=count + 20) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        clients = context.Process(
            target=run_clients, args=(server.port, count, options.rest, there), daemon=True
        )
        clients.start()
        chosen = methods(options.methods, server.port, Path(folder), options.pgactivity)
        tallies = {name: Tally() for name in chosen}
        until = time.monotonic() + options.minutes * 60
        while (
            min(tally.ended for tally in tallies.values()) < options.kills
            and time.monotonic() < until
        ):
            for name, method in chosen.items():
                if tallies[name].ended < options.kills:
                    _round(server, here, method, tallies[name], options)
                    yield server.major, tallies
        here.send("stop")
        clients.join(10)


def _round(
    server: LocalPostgres, clients: Any, method: Method, tally: Tally, options: argparse.Namespace
) -> None:
    clients.send("refill")
    clients.recv()
    time.sleep(2 * options.idle + 0.1)
    clients.send("ended")
    clients.recv()
    log_began = server.log.stat().st_size
    began = time.monotonic()
    method(options.idle)
    tally.seconds.append(time.monotonic() - began)
    time.sleep(0.5)
    clients.send("ended")
    ended = dict(clients.recv())
    with server.log.open(errors="replace") as log:
        log.seek(log_began)
        at_work = {
            int(found[1])
            for line in log
            if (found := FATAL.search(line)) and found[2].strip() != "idle"
        }
    tally.ended += len(ended)
    tally.errors += sum(ended.values())
    tally.hard += len(at_work & set(ended))


# Speed


def seconds_until_gone(
    port: int, method: Method, watcher: Any, count: int, idle: float, *, within: float = 60
) -> float:
    """Return the seconds that *method* takes until *count* new idle sessions have gone.

    Raises TimeoutError if some are still there after *within* seconds.
    """
    clients: list[Client] = []
    try:
        for _ in range(count):
            clients.append(Client(port))
        time.sleep(idle + 0.1)
        began = time.monotonic()
        method(idle)
        while watcher.execute(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = %s LIMIT 1", (CLIENT,)
        ).fetchone():
            if time.monotonic() - began > within:
                raise TimeoutError(f"Sessions were left after {within:g} s.")
            time.sleep(0.002)
        return time.monotonic() - began
    finally:
        for client in clients:
            client.socket.close()


def speed(options: argparse.Namespace) -> None:
    print(
        "| sessions | method | ms until all have gone, median | µs a session | ratio to one"
        " statement | rounds |"
    )
    print("|---|---|---|---|---|---|")
    with (
        LocalPostgres(max_connections=max(options.sessions) + 20) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        import psycopg

        chosen = methods(options.methods, server.port, Path(folder), options.pgactivity)
        address = f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres"
        with psycopg.connect(address, autocommit=True) as watcher:
            for count in options.sessions:
                taken: dict[str, list[float]] = {name: [] for name in chosen}
                for _ in range(options.rounds):
                    for name, method in chosen.items():
                        seconds = seconds_until_gone(
                            server.port, method, watcher, count, options.idle
                        )
                        taken[name].append(seconds)
                # The pair of a round meets the same load, so the ratio is the median of the rounds'
                # own ratios.
                for name, times in taken.items():
                    ratio = statistics.median(
                        each / base for each, base in zip(times, taken["naive"], strict=True)
                    )
                    middle = statistics.median(times)
                    print(
                        f"| {count} | {name} | {middle * 1000:.0f} | {middle / count * 1e6:.0f} |"
                        f" {ratio:.2f} | {options.rounds} |",
                        flush=True,
                    )
    print(
        f"\nThis process took {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
        " at most."
    )


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the wrong kills of a reaper, and its speed."
    )
    parser.add_argument("what", choices=["race", "speed"])
    parser.add_argument(
        "--sessions", type=_numbers, default=None, help="So many; several for speed: 100,500,1500."
    )
    parser.add_argument(
        "--methods", type=lambda text: text.split(","), default=["naive", "list", "ours"]
    )
    parser.add_argument(
        "--rest", type=float, default=0.1, help="Clients rest so many seconds on average."
    )
    parser.add_argument(
        "--idle", type=float, default=0.05, help="End what has been idle for so many seconds."
    )
    parser.add_argument(
        "--kills", type=int, default=2000, help="Go on until each method has ended so many."
    )
    parser.add_argument("--minutes", type=float, default=30, help="Stop after so long in any case.")
    parser.add_argument("--rounds", type=int, default=7, help="Measure the speed so many times.")
    parser.add_argument(
        "--pgactivity", metavar="PYTHON", help="A Python in which django-pgactivity is installed."
    )
    options = parser.parse_args()
    if "pgactivity" in options.methods and not options.pgactivity:
        parser.error("--pgactivity names a Python in which django-pgactivity is installed")
    if importlib.util.find_spec("psycopg") is None:
        parser.error(
            "the methods that we compare with are written for psycopg 3: pip install"
            " 'psycopg[binary]'"
        )
    options.sessions = options.sessions or ([500] if options.what == "race" else [100, 500, 1500])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    {"race": race, "speed": speed}[options.what](options)


if __name__ == "__main__":
    main()
