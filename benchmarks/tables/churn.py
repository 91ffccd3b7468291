"""Sessions that a reaper ends although they were executing."""

from __future__ import annotations

import argparse
import resource
from collections.abc import Iterator

from benchmarks.bench_reaper import Tally, raced
from benchmarks.figures import Cells, rate, spread
from benchmarks.peers import PeerError, pgactivity
from benchmarks.tables.rest import METHODS as REAPERS
from benchmarks.tables.table import Chart, Column, Figures, Measured, Size, Table, reason

METHODS = {**REAPERS, "timeout": "`idle_session_timeout`, in force for 0.3 s a round"}


def rows(size: Size) -> list[str]:
    return [*METHODS.values()]


def measure(size: Size) -> Iterator[Measured]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    chosen, python = [*METHODS], None
    try:
        python = pgactivity()
    except PeerError as error:
        chosen.remove("pgactivity")
        yield METHODS["pgactivity"], {"failed": reason(error)}
    options = argparse.Namespace(
        sessions=[12 if size is Size.TRIAL else 500],
        methods=chosen,
        rest=0.1,
        idle=0.05,
        kills=6 if size is Size.TRIAL else 2000,
        minutes=0.5 if size is Size.TRIAL else 1.9,
        pgactivity=python,
    )
    for _, tallies in raced(options):
        for name, tally in tallies.items():
            ended_none: Cells = {"failed": f"ended no session in {len(tally.seconds)} rounds"}
            yield METHODS[name], _cells(tally) if tally.ended else ended_none


def _cells(tally: Tally) -> Cells:
    return {
        "hard": rate(tally.hard, tally.ended),
        "errors": rate(tally.errors, tally.ended),
        "seconds": spread(tally.seconds),
        "hard_kills": tally.hard,
        "n": tally.ended,
    }


def says(of: Figures) -> str:
    naive, peer = (of(METHODS[name], "hard") for name in ("naive", "pgactivity"))
    ours = [of(METHODS[name], "hard_kills") for name in ("ours", "command")]
    ended = [of(METHODS[name], "n") for name in ("ours", "command")]
    return (
        f"Of the {sum(ended):,.0f} sessions that the reaper ended, {sum(ours):.0f} executed; of"
        f" 1,000 that the bulk statement ended, {naive:.1f}, and of django-pgactivity's,"
        f" {peer:.1f}.\n"
        "No reaper can close the window between its look and its signal.\n"
        "`idle_session_timeout` has no such window, because the session's own process decides:"
        f" {of(METHODS['timeout'], 'hard'):.1f} of 1,000 executed, and clients saw"
        f" {of(METHODS['timeout'], 'errors'):.1f} errors, for statements that were on their way."
    )


TABLE = Table(
    name="churn",
    title="Reaping under churn",
    about=(
        "500 clients rest for 0.1 seconds on average and send a statement of 5 milliseconds;"
        " sessions are due after 50 milliseconds.\n"
        "This threshold is far too short for use: with ten minutes there would be nothing to"
        " count.\n"
        "A hard wrong kill is one where the server's log says that the session was executing.\n"
        "An error is one that a client saw, also for a statement that was on its way.\n"
        "The intervals are those of 95 % for a share (Wilson); n is the number of ended sessions."
    ),
    first="method",
    columns=(
        Column("hard", "hard wrong kills per 1,000", ".2f"),
        Column("hard_kills", "hard wrong kills"),
        Column("errors", "errors at clients per 1,000", ".1f"),
        Column("seconds", "seconds a round", ".2f"),
        Column("n", "n"),
    ),
    rows=rows,
    measure=measure,
    says=says,
    chart=Chart("hard", "Hard wrong kills of 1,000 ended sessions", ".1f"),
    within=140,
    packages=("Django", "psycopg", "django-pgactivity"),
)
