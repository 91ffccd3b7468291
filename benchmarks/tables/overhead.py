"""The cost of a request with app and middleware, and of a statement on the engine."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench_engine import compare_statements
from benchmarks.bench_middleware import SERVED, VIEWS, compare_all
from benchmarks.figures import Cells, spread
from benchmarks.served import database, stay_on_one_processor
from benchmarks.tables.table import Chart, Column, Figures, Measured, Size, Table

STATEMENTS = ("SELECT 1", "an ORM get()", "SELECT 1 in atomic()")


def rows(size: Size) -> list[str]:
    requests = [
        _request(interface, measured, view)
        for interface in SERVED
        for measured in ("server", "handler")
        for view in VIEWS
    ]
    return [*requests, *map(_statement, STATEMENTS)]


def _request(interface: str, measured: str, view: str) -> str:
    return f"request, {interface} {measured}, {view}"


def _statement(statement: str) -> str:
    return f"engine, {statement}"


def measure(size: Size) -> Iterator[Measured]:
    pairs, requests, blocks = (3, 10, 40) if size is Size.TRIAL else (40, 200, 1000)
    stay_on_one_processor()
    with database() as url:
        # The engine first: it is quick, and its rows are there when time runs out.
        for each in compare_statements(url, blocks, 20, threads=(1,)):
            ratios = {**spread(each.ratios), "median": each.ratio}
            yield (
                _statement(each.statement),
                _cells(ratios, each.django_us, each.guarded_us, len(each.ratios)),
            )
        for interface, measured, _, view, found in compare_all(url, pairs, requests, aliases=(1,)):
            ratios = {"median": found.ratio, "low": found.low, "high": found.high, "n": pairs}
            yield (
                _request(interface, measured, view),
                _cells(ratios, found.bare_us, found.ours_us, found.pairs),
            )


def _cells(ratios: dict[str, float], bare: float, ours: float, number: int) -> Cells:
    return {"ratio": ratios, "bare": bare, "ours": ours, "n": number}


def says(of: Figures) -> str:
    served = [
        of(_request(interface, "server", view), "ratio") for interface in SERVED for view in VIEWS
    ]
    engine = [of(_statement(each), "ratio") for each in STATEMENTS]
    return (
        f"A request to a real server takes {min(served):.2f} to {max(served):.2f} times the"
        " processor time of Django alone, and a statement on the engine"
        f" {min(engine):.2f} to {max(engine):.2f} times its duration.\n"
        "The reaper, `idle_session_timeout` and PgBouncer add no code to a request: where one of"
        " them is enough, this cost is zero."
    )


TABLE = Table(
    name="overhead",
    title="The cost of a request and of a statement",
    about=(
        "Requests are compared in pairs, by the processor time of the serving process: gunicorn's"
        " gthread worker with `CONN_MAX_AGE = 60`, uvicorn with 0, and Django's handlers alone.\n"
        "The ratio of a request is the median of the pairs with its interval of 95 %.\n"
        "Statements are compared by their duration: the quickest twentieth of the blocks, with"
        " the lowest and highest ratio of five parts of the run.\n"
        "All processes run on one processor."
    ),
    first="measured",
    columns=(
        Column("ratio", "ratio to Django alone", ".3f"),
        Column("bare", "Django alone, µs", ".1f"),
        Column("ours", "with conn_guard, µs", ".1f"),
        Column("n", "n"),
    ),
    rows=rows,
    measure=measure,
    says=says,
    chart=Chart("ratio", "Cost of a request and of a statement, ratio to Django alone", ".2f", 1),
    within=230,
    packages=("Django", "psycopg", "uvicorn", "gunicorn"),
)
