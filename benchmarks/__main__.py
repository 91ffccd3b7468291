"""``python -m benchmarks`` measures the tables of docs/reference/benchmarks.md and writes it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import page, results
from benchmarks.tables import TABLES
from benchmarks.tables.table import Size

LOGS = page.DOCS.parent / "build" / "bench"
END_WITHIN = 40
"""Seconds that a table has to end its servers and sessions after its time is over."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the tables, one process each; return 1 if a row was not measured."""
    options = _parser().parse_args(arguments)
    chosen = [name for name in TABLES if name in (options.only or TABLES)]
    known = results.read(options.results)
    failed = []
    for name in [] if options.draw else chosen:
        print(f"{name}: up to {TABLES[name].within:g} s", flush=True)
        known[name] = measure(name, options, known)
        for row, cells in known[name].rows.items():
            if isinstance(cells.get("failed"), str):
                failed.append(f"{name}: {row}: {cells['failed']}")
    for path, text in page.files(known, options.docs).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"{path} is written.")
    for line in failed:
        print(line, file=sys.stderr)
    return int(bool(failed))


def measure(
    name: str, options: argparse.Namespace, known: dict[str, results.Result]
) -> results.Result:
    """Measure one table in a process of its own, and keep each row as soon as it is there."""
    size = Size.TRIAL if options.small else Size.FULL
    command = ["python", "-m", "benchmarks", "--only", name, *["--small"] * options.small]
    result = results.begin(" ".join(command), small=options.small)
    LOGS.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    is_over = threading.Event()
    with (
        (LOGS / f"{name}.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measure", name, size.value],
            cwd=page.DOCS.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):

        def end() -> None:
            is_over.set()
            process.terminate()

        timers = [
            threading.Timer(TABLES[name].within, end),
            threading.Timer(TABLES[name].within + END_WITHIN, process.kill),
        ]
        for timer in timers:
            timer.start()
        try:
            for line in process.stdout or ():
                _take(line, result)
                result.seconds = round(time.monotonic() - began, 1)
                results.write(options.results, {**known, name: result})
        finally:
            for timer in timers:
                timer.cancel()
            process.terminate()
    result.seconds = round(time.monotonic() - began, 1)
    why = f"the process ended with {process.returncode}"
    if is_over.is_set():
        why = f"its {TABLES[name].within:g} s were over"
    result.rows = {
        row: result.rows.get(row, {"failed": f"not measured: {why}"})
        for row in TABLES[name].rows(size)
    }
    results.write(options.results, {**known, name: result})
    print(f"{name}: {result.seconds:.0f} s", flush=True)
    return result


def _take(line: str, result: results.Result) -> None:
    if not line.startswith("{"):
        return
    told = json.loads(line)
    if "versions" in told:
        result.versions = told["versions"]
    else:
        result.rows[told["row"]] = told["cells"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measures {', '.join(TABLES)}; writes docs/reference/benchmarks.md.",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*TABLES],
        metavar="NAME",
        help=f"measure these tables and keep the results of the others: {', '.join(TABLES)}",
    )
    parser.add_argument(
        "--small", action="store_true", help="try with tiny sizes; the figures mean nothing"
    )
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing; write the page from the results"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=results.RESULTS,
        help="keep the results in this file (%(default)s)",
    )
    parser.add_argument(
        "--docs", type=Path, default=page.DOCS, help="write the page below this (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
