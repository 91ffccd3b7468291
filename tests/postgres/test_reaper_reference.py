"""The reaper's reference page: its commands run, and its tables are those of the code."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from django.core.management import BaseCommand, call_command, load_command_class

from conn_guard.sessions.policy import Verdict
from conn_guard.sessions.render.metrics import render_metrics
from conn_guard.sessions.report import Action, Exit, Status
from tests.core.test_report import REPORT
from tests.postgres.howto import first_cells
from tests.support.reaping import reap

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "idle_reaper.md").read_text(encoding="utf-8")
GOLDENS = ROOT / "tests" / "core" / "goldens"


def blocks(language):
    return re.findall(rf"^```{language}.*?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_each_command_of_the_page_runs(line, session_factory, application_name, capsys):
    program, script, name, *arguments = shlex.split(line)
    assert (program, script, name) == ("python", "manage.py", "idle_reaper")
    # Sessions of tests beside this one are younger than any threshold of the page.
    call_command(name, *arguments)
    assert capsys.readouterr().out


def test_the_table_of_options_is_the_parsers():
    parser = load_command_class("conn_guard", "idle_reaper").create_parser(
        "manage.py", "idle_reaper"
    )
    djangos = {action.dest for action in BaseCommand().create_parser("manage.py", "any")._actions}
    ours = {
        option: action.metavar or "|".join(action.choices or ())
        for action in parser._actions
        for option in action.option_strings
        if action.dest not in djangos
    }
    assert [" ".join(filter(None, each)) for each in ours.items()] == [
        cell.replace("\\", "") for cell in first_cells(PAGE, "## Options")
    ]


def test_the_tables_of_reasons_and_fields_are_the_codes(session_factory):
    spared = [verdict.value for verdict in Verdict if verdict.spares]
    assert sorted(first_cells(PAGE, "## Which sessions it spares")) == sorted(spared)
    session, summary = (json.loads(line) for line in blocks("json")[0].splitlines())
    assert {"event", *first_cells(PAGE, "| field of `session` |")} == set(session)
    assert {"event", "alias", *first_cells(PAGE, "| field of `summary` |")} == set(summary)
    session_factory()
    run = reap("--any-database", "--dry-run")
    assert {frozenset(each) for each in run.sessions.values()} == {frozenset(session)}
    assert set(run.summary) == set(summary)
    assert all(f"`{action.value}`" in PAGE for action in Action)
    assert all(f"`{status.value}`" in PAGE for status in Status)


def test_the_examples_are_goldens():
    assert blocks("text run") == [(GOLDENS / "dry_run.txt").read_text(encoding="utf-8")]
    assert set(blocks("json")[0].splitlines()) <= set(
        (GOLDENS / "run.jsonl").read_text(encoding="utf-8").splitlines()
    )


def test_the_table_of_exit_codes_is_the_codes():
    table = PAGE.split("## Exit codes", 1)[1]
    assert [int(code) for code in re.findall(r"^\| (\d) \|", table, re.MULTILINE)] == [
        int(code) for code in Exit
    ]


def test_the_table_of_metrics_is_the_files():
    written = render_metrics([REPORT], now=1.0, earlier={"default": 1.0})
    names = set(re.findall(r"^# TYPE (\S+)", written, re.MULTILINE))
    assert names == {
        cell for cell in first_cells(PAGE, "## Metrics") if cell.startswith("conn_guard_")
    }
