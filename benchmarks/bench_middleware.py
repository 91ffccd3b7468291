"""Compare the cost of a request with the app and its middleware to bare Django.

``python -m benchmarks.bench_middleware`` runs both in interleaved pairs. It measures whole requests
on gunicorn's gthread worker and on uvicorn, and Django's handlers without a server, where the added
cost is the largest part.

The clock is the processor time of the serving process. Other programs disturb it least, and it
leaves PostgreSQL's time out. ``--clock wall`` takes the time that a client waits. All processes run
on one processor: on several, waking a thread on another one costs more than the difference that is
measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection

from benchmarks.served import COLUMNS, database, get, served, stay_on_one_processor
from tests.leaks.harness import Cell, environment_of
from tests.leaks.servers import SERVERS

Run = Callable[[str, int], float]
"""Takes a path and a number of requests; returns their seconds on the chosen clock."""

VIEWS = {"without a query": "/nothing/", "one query": "/sync_query/"}
# Under WSGI a persistent connection is the usual setting and makes a query cheapest. Under ASGI
# connections don't persist.
SERVED = {"WSGI": ("gunicorn-gthread", "60"), "ASGI": ("uvicorn", "0")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pairs", type=int, default=60, help="pairs of runs for each line (%(default)s)"
    )
    parser.add_argument("--requests", type=int, default=200, help="requests in a run (%(default)s)")
    parser.add_argument(
        "--clock",
        choices=["cpu", "wall"],
        default="cpu",
        help="processor time or a client's (%(default)s)",
    )
    options = parser.parse_args()
    stay_on_one_processor()
    print(
        "| interface | measured | aliases | view | bare Django | with conn_guard | ratio | interval"
        " of 95 % |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with database() as url:
        for *names, compared in compare_all(url, options.pairs, options.requests, options.clock):
            print(f"| {' | '.join(map(str, names))} | {compared} |", flush=True)


@dataclass(frozen=True)
class Compared:
    """The cost of a request in microseconds, and the ratio with the interval of 95 %."""

    bare_us: float
    ours_us: float
    ratio: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return (
            f"{self.bare_us:.0f} µs | {self.ours_us:.0f} µs | {self.ratio:.3f} | {self.low:.3f} to"
            f" {self.high:.3f}"
        )


def compare_all(
    url: str, pairs: int, requests: int, clock: str = "cpu", aliases: tuple[int, ...] = (1, 3)
) -> Iterator[tuple[str, str, int, str, Compared]]:
    """Yield interface, what was measured, number of aliases, view, and the comparison."""
    for interface in SERVED:
        for measured, opened in (("server", _server), ("handler", _handler)):
            for number in aliases:
                with ExitStack() as stack:
                    runs = [
                        stack.enter_context(opened(interface, column, url, number, clock))
                        for column in COLUMNS
                    ]
                    for view, path in VIEWS.items():
                        compared = _compare(runs, path, pairs, requests)
                        yield interface, measured, number, view, compared


def _compare(runs: list[Run], path: str, pairs: int, requests: int) -> Compared:
    bare, ours = runs
    for run in runs:
        run(path, requests)
    seconds: list[tuple[float, float]] = []
    for pair in range(pairs):
        # Each is first in half of the pairs, because the second run finds warmer caches.
        if pair % 2:
            one = bare(path, requests)
            seconds.append((one, ours(path, requests)))
        else:
            other = ours(path, requests)
            seconds.append((bare(path, requests), other))
    ratios = sorted(other / one for one, other in seconds)
    # These order statistics enclose the median in 95 of 100 cases.
    reach = round(0.98 * len(ratios) ** 0.5)
    middle = len(ratios) // 2
    low, high = ratios[max(0, middle - reach)], ratios[min(len(ratios) - 1, middle + reach)]
    micros = [statistics.median(column) / requests * 1e6 for column in zip(*seconds, strict=True)]
    return Compared(*micros, statistics.median(ratios), low, high, pairs)


@contextmanager
def _server(interface: str, column: str, url: str, aliases: int, clock: str) -> Iterator[Run]:
    """Yield a function that makes requests one after the other over one HTTP connection."""
    name, setting = SERVED[interface]
    with served(SERVERS[name], column, url, setting=setting, aliases=aliases) as (port, _):

        def now(client: HTTPConnection) -> float:
            return (
                time.perf_counter()
                if clock == "wall"
                else json.loads(get(client, "/control/"))["cpu_seconds"]
            )

        def run(path: str, requests: int) -> float:
            # A new HTTP connection for each run: a server closes one that is idle during the other
            # server's run.
            with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as client:
                began = now(client)
                for _ in range(requests):
                    get(client, path)
                return now(client) - began

        yield run


@contextmanager
def _handler(interface: str, column: str, url: str, aliases: int, clock: str) -> Iterator[Run]:
    """Yield a function that calls Django's handler in a process of its own."""
    setting = SERVED[interface][1]
    environ = environment_of(Cell("uvicorn", "nothing", setting, column), url, "benchmark-handler")
    environ["LEAKS_ALIASES"] = ",".join(["default", "second", "third"][:aliases])
    command = [sys.executable, "-m", "benchmarks.handler_process", interface, clock]
    with subprocess.Popen(
        command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(path: str, requests: int) -> float:
            print(path, requests, file=process.stdin, flush=True)
            return float(process.stdout.readline())

        yield run
        process.stdin.close()


if __name__ == "__main__":
    main()
