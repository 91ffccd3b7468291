"""The tables and the page of the leak matrix, tested without a server."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.leaks import page, plan, rings
from tests.leaks.environments import ENVIRONMENTS
from tests.leaks.harness import Cell, Left, Result, settle
from tests.leaks.mechanisms import MECHANISMS
from tests.leaks.outcomes import Outcome, rows
from tests.leaks.servers import SERVERS

NONE = Left(0, 0)
HERE = ENVIRONMENTS["5.2-psycopg"]


def _outcome(mechanism, column, left, *, server="uvicorn", wrong_answers=0, environment=HERE):
    result = Result(left, NONE, wrong_answers, 1.0)
    return Outcome(environment, Cell(server, mechanism, "0", column)).with_result(result)


def test_every_mechanism_has_a_view_of_its_name():
    folder = Path(__file__).parent / "leaky_site" / "views"
    views = {
        node.name
        for module in folder.glob("*.py")
        for node in ast.parse(module.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and any(isinstance(each, ast.Name) and each.id == "view" for each in node.decorator_list)
    }
    assert views == {*MECHANISMS, "nothing", "backend_pid", "large", "large_file"}


def test_every_name_in_the_tables_is_known():
    assert all(
        set(table) <= set(MECHANISMS)
        for name, table in vars(rings).items()
        if name.startswith("NEEDS_")
    )
    assert {server for mechanism in MECHANISMS.values() for server in mechanism.servers} == set(
        SERVERS
    )


def test_every_environment_with_a_pool_measures_it():
    for environment in ENVIRONMENTS.values():
        settings = {cell.setting for cell in plan.cells(environment, ["django"])}
        assert ("pool" in settings) == (
            environment.driver == "psycopg" and environment.series != "4.2"
        )


@pytest.mark.parametrize(
    ("column", "server", "mechanism", "setting", "at_most"),
    [
        ("django", "uvicorn", "x_accel_redirect", "0", None),
        ("app", "uvicorn", "x_accel_redirect", "0", 0),
        ("app", "uvicorn", "global_executor", "0", None),
        ("engine", "uvicorn", "global_executor", "0", 0),
        ("engine", "uvicorn", "executor_without_autocommit", "0", None),
        ("app", "gunicorn-gthread", "raw_begin", "None", None),
        ("middleware", "gunicorn-gthread", "copy_dropped", "0", 0),
        ("middleware", "gunicorn-gthread", "two_aliases", "None", 16),
        ("middleware", "gunicorn-gevent", "sync_query", "None", 0),
        ("app", "uvicorn", "create_task", "0", None),
        ("middleware", "uvicorn", "create_task", "0", 0),
    ],
)
def test_a_column_owes_what_its_ring_covers(column, server, mechanism, setting, at_most):
    assert rings.expectation(column, server, mechanism, setting, "5.2").at_most == at_most


def test_a_wrong_answer_is_not_made_good_by_a_zero():
    assert _outcome("thread", "app", NONE).kept
    assert not _outcome("thread", "app", NONE, wrong_answers=1).kept
    assert not _outcome("thread", "app", Left(1, 0)).kept
    assert (
        not Outcome(HERE, Cell("uvicorn", "thread", "0", "app")).with_error("it did not start").kept
    )


def test_sessions_are_given_their_rest_but_no_longer():
    counts = iter([Left(2, 0), Left(1, 0), NONE, NONE, NONE])
    assert settle(lambda: next(counts), within=5) == NONE
    assert settle(lambda: Left(0, 3), within=0.01) == Left(0, 3)


def test_a_session_that_comes_back_is_seen():
    counts = iter([NONE, NONE, Left(1, 0)])
    assert settle(lambda: next(counts, Left(1, 0)), within=0.2) == Left(1, 0)


def test_the_page_shows_what_each_column_left_and_why():
    other = ENVIRONMENTS["4.2-psycopg2"]
    matrix = rows(
        [
            _outcome("thread", "django", Left(50, 0)),
            _outcome("thread", "django", Left(40, 1), environment=other),
            _outcome("thread", "app", NONE),
            _outcome("thread", "app", Left(1, 0), environment=other),
            _outcome("global_executor", "app", Left(6, 0)),
        ]
    )
    text = page.render(
        matrix, ["django", "app"], {"6.1-psycopg": "no Python 3.12 was found"}, requests=50, rest=2
    )
    assert "| uvicorn | threading.Thread in a view | 0 | 41 to 50 / 0 tx | **0 to 1 / 0** |" in text
    assert "| uvicorn | global ThreadPoolExecutor | 0 |  | 6 / 0 [1] |" in text
    assert f"1. {rings.NEEDS_ENGINE['global_executor'].capitalize()}." in text
    assert "6.1-psycopg is not among them: no Python 3.12 was found." in text
