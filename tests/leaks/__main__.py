"""``python -m tests.leaks`` measures the leak matrix."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from pathlib import Path

from tests.leaks import page, plan
from tests.leaks.environments import ENVIRONMENTS, Environment, NotAvailableError
from tests.leaks.harness import ROOT, Cell, CellError, Left, Result, measure
from tests.leaks.mechanisms import MECHANISMS
from tests.leaks.outcomes import Outcome, rows
from tests.leaks.progress import Progress
from tests.leaks.rings import COLUMNS
from tests.leaks.servers import SERVERS

PAGE = ROOT / "docs" / "reference" / "leak-matrix.md"
LOGS = ROOT / "build" / "leaks"
KEEPS_ROOM_FOR = 400
"""Slots of the server that is started for the matrix: plain Django leaves up to a hundred sessions
in a cell.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for and return 1 where a column left what it is to close, or a cell
    can't be measured.
    """
    options = _parser().parse_args(arguments)
    columns = [column for column in COLUMNS if column in options.column]
    known = _read(options.results)
    outcomes: list[Outcome] = []
    skipped: dict[str, str] = {}
    with _database() as database_url, Progress(columns) as progress:
        for environment in map(ENVIRONMENTS.__getitem__, options.environment):
            cells = list(
                plan.cells(
                    environment,
                    columns,
                    servers=options.server,
                    mechanisms=options.mechanism,
                    settings=options.setting,
                )
            )
            if not cells:
                continue
            progress.begin(environment.name, len(cells))
            try:
                python = environment.make()
            except NotAvailableError as error:
                skipped[environment.name] = str(error)
                progress.skip(f"{environment.name} is left out: {error}.")
                continue
            run = partial(_outcome, environment, python, database_url, options, known)
            with _workers(options.jobs) as executor:
                for future in as_completed([executor.submit(run, cell) for cell in cells]):
                    outcome = future.result()
                    outcomes.append(outcome)
                    if options.results and outcome.result and outcome.key not in known:
                        _append(options.results, outcome)
                    progress.add(outcome)
    matrix = rows(outcomes)
    progress.print_matrix(matrix)
    if options.page is None and _is_whole(options):
        options.page = PAGE
    if options.page:
        options.page.write_text(
            page.render(matrix, columns, skipped, requests=options.requests, rest=options.rest)
        )
    return 1 if any(not outcome.kept for outcome in outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.leaks", description=__doc__.splitlines()[0]
    )
    columns = ["django", "app", "middleware"]
    if (ROOT / "src" / "conn_guard" / "engine" / "postgresql" / "base.py").exists():
        columns.append("engine")
    choices = {
        "server": (SERVERS, [], "a web server"),
        "mechanism": (MECHANISMS, [], "a way to leak"),
        "setting": (("0", "60", "None", "pool"), [], "CONN_MAX_AGE, or Django's pool"),
        "environment": (ENVIRONMENTS, list(ENVIRONMENTS), "a Django and a driver"),
        "column": (COLUMNS, columns, "what is installed"),
    }
    for name, (known, default, what) in choices.items():
        parser.add_argument(
            f"--{name}",
            action=_Choose,
            known=tuple(known),
            default=default,
            metavar="NAME[,NAME]",
            help=f"measure this alone, {what}: {', '.join(known)}",
        )
    parser.add_argument("--requests", type=int, default=50, help="requests in a cell (%(default)s)")
    parser.add_argument(
        "--concurrency", type=int, default=5, help="requests at a time (%(default)s)"
    )
    parser.add_argument(
        "--rest",
        type=float,
        default=2,
        help="seconds that sessions have to go, at most (%(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time (%(default)s)")
    parser.add_argument(
        "--no-collector", action="store_true", help="switch Python's collector off in the servers"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="keep results in this file, and measure only what it doesn't hold",
    )
    parser.add_argument(
        "--page",
        type=Path,
        help=f"write the page here; a whole run writes {PAGE.relative_to(ROOT)}",
    )
    return parser


class _Choose(argparse.Action):
    """A list of known names, with commas or by repeating the option; the first use replaces the
    default.
    """

    def __init__(self, *, known: tuple[str, ...], **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.known = known

    def __call__(self, parser, namespace, values, option_string=None) -> None:  # type: ignore[no-untyped-def]
        names = values.split(",")
        for name in names:
            if name not in self.known:
                parser.error(f"{option_string}: {name!r} is none of {', '.join(self.known)}")
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, names if before is self.default else [*before, *names])


def _is_whole(options: argparse.Namespace) -> bool:
    chosen = options.server or options.mechanism or options.setting
    return (
        not chosen
        and options.environment == list(ENVIRONMENTS)
        and {"django", "app", "middleware"} <= set(options.column)
    )


def _outcome(
    environment: Environment,
    python: str,
    url: str,
    options: argparse.Namespace,
    known: dict[str, Result],
    cell: Cell,
) -> Outcome:
    outcome = Outcome(environment, cell)
    if result := known.get(outcome.key):
        return outcome.with_result(result)
    measured = partial(
        measure,
        cell,
        url,
        python=python,
        requests=options.requests,
        concurrency=options.concurrency,
        rest=options.rest,
        collector=not options.no_collector,
        logs=LOGS,
    )
    try:
        try:
            return outcome.with_result(measured())
        except CellError:
            return outcome.with_result(measured())  # Another process may have taken its port.
    except CellError as error:
        return outcome.with_error(str(error))


@contextmanager
def _workers(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Yield an executor whose cells, when the run is interrupted, end with their servers, and whose
    other cells never begin.
    """
    executor = ThreadPoolExecutor(jobs)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _database() -> Iterator[str]:
    """Yield the address of the server in DATABASE_URL, or of one of our own."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    from tools.local_postgres import LocalPostgres

    with LocalPostgres(max_connections=KEEPS_ROOM_FOR) as server:
        yield server.url()


def _read(path: Path | None) -> dict[str, Result]:
    if path is None or not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {key: Result(Left(*left), Left(*after), *rest) for key, (left, after, *rest) in lines}


def _append(path: Path, outcome: Outcome) -> None:
    with path.open("a") as file:
        file.write(json.dumps([outcome.key, astuple(outcome.result)]) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
