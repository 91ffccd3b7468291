"""What the app and its middleware cost: this room holds the ratio to bare Django, by pairs of
interleaved runs.

``python -m benchmarks.bench_middleware`` measures whole requests on gunicorn's gthread worker and
on uvicorn, and Django's handlers alone, without a server around them, where nothing hides the cost.
The clock is the processor time of the process that serves, which other programs disturb least and
which leaves PostgreSQL's own time out; ``--clock wall`` takes the time that a client waits. All of
it runs on one processor: on several, threads that wake each other from afar cost more than what is
measured."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection

from benchmarks.served import COLUMNS, database, get, served, stay_on_one_processor
from tests.leaks.harness import Cell, environment_of
from tests.leaks.servers import SERVERS

Run = Callable[[str, int], float]
"""Takes a path and a number of requests, and returns the seconds that they took on the chosen
clock.
"""

VIEWS = {"without a query": "/nothing/", "one query": "/sync_query/"}
# Under WSGI a persistent connection is the usual setting, and the one where a query is cheapest;
# ASGI has none.
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
        for interface in SERVED:
            for measured, opened in (("server", _server), ("handler", _handler)):
                for aliases in (1, 3):
                    with ExitStack() as stack:
                        runs = [
                            stack.enter_context(
                                opened(interface, column, url, aliases, options.clock)
                            )
                            for column in COLUMNS
                        ]
                        for view, path in VIEWS.items():
                            line = _compare(runs, path, options.pairs, options.requests)
                            print(
                                f"| {interface} | {measured} | {aliases} | {view} | {line} |",
                                flush=True,
                            )


def _compare(runs: list[Run], path: str, pairs: int, requests: int) -> str:
    bare, ours = runs
    for run in runs:
        run(path, requests)
    seconds: list[tuple[float, float]] = []
    for pair in range(pairs):
        # Each goes first as often as the other: what comes second finds warmer caches.
        if pair % 2:
            one = bare(path, requests)
            seconds.append((one, ours(path, requests)))
        else:
            other = ours(path, requests)
            seconds.append((bare(path, requests), other))
    ratios = sorted(other / one for one, other in seconds)
    # The order statistics that enclose the median in 95 of 100 cases.
    reach = round(0.98 * len(ratios) ** 0.5)
    middle = len(ratios) // 2
    low, high = ratios[max(0, middle - reach)], ratios[min(len(ratios) - 1, middle + reach)]
    micros = [statistics.median(column) / requests * 1e6 for column in zip(*seconds, strict=True)]
    return (
        f"{micros[0]:.0f} µs | {micros[1]:.0f} µs | {statistics.median(ratios):.3f} | {low:.3f} to"
        f" {high:.3f}"
    )


@contextmanager
def _server(interface: str, column: str, url: str, aliases: int, clock: str) -> Iterator[Run]:
    """Yield a run of whole requests, one after the other over one connection that is kept alive."""
    name, setting = SERVED[interface]
    with served(SERVERS[name], column, url, setting=setting, aliases=aliases) as (port, _):

        def now(client: HTTPConnection) -> float:
            return (
                time.perf_counter()
                if clock == "wall"
                else json.loads(get(client, "/control/"))["cpu_seconds"]
            )

        def run(path: str, requests: int) -> float:
            # A connection for each run: servers end one that rests while the other server has its
            # turn.
            with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as client:
                began = now(client)
                for _ in range(requests):
                    get(client, path)
                return now(client) - began

        yield run


@contextmanager
def _handler(interface: str, column: str, url: str, aliases: int, clock: str) -> Iterator[Run]:
    """Yield a run of Django's handler, in a process of its own: two Djangos don't fit into one."""
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
