"""The pages about the report: their commands run, and their tables and examples are the code's."""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from django.core.management import BaseCommand, call_command, load_command_class

from conn_guard.sessions import meaning
from conn_guard.sessions.groups import Field
from conn_guard.sessions.meaning import meanings
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.render.report_text import render_report
from conn_guard.sessions.report import Exit
from tests.core.looks import leaked, look
from tests.postgres.howto import blocks, first_cells, lines

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "reference" / "conn_report.md").read_text(encoding="utf-8")
GOLDENS = ROOT / "tests" / "core" / "goldens"
HOW_TO = "who-holds-my-connections"


def of_page(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in of_page("sh") for line in block.splitlines()] + lines(HOW_TO)


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_each_command_of_the_pages_runs(line):
    program, script, name, *arguments = shlex.split(line)
    assert (program, script, name) == ("python", "manage.py", "conn_report")
    stdout = io.StringIO()
    call_command(name, *arguments, stdout=stdout, stderr=io.StringIO())
    assert bool(stdout.getvalue()) is ("-v 0" not in line)


def test_the_table_of_options_is_the_parsers():
    parser = load_command_class("conn_guard", "conn_report").create_parser("manage.py", "any")
    djangos = {action.dest for action in BaseCommand().create_parser("manage.py", "any")._actions}
    ours = {
        option: action.metavar or "|".join(action.choices or ())
        for action in parser._actions
        for option in action.option_strings
        if action.dest not in djangos
    }
    cells = [cell.replace("\\", "") for cell in first_cells(PAGE, "## Options")]
    assert cells == [" ".join(filter(None, each)) for each in ours.items()]
    by = next(row for row in PAGE.splitlines() if row.startswith("| `--by"))
    assert all(f"`{each.value}`" in by for each in Field)


def test_the_examples_are_goldens():
    assert of_page("text report") == [(GOLDENS / "report.txt").read_text(encoding="utf-8")]
    assert of_page("json") == [(GOLDENS / "report.jsonl").read_text(encoding="utf-8")]


def test_the_table_of_fields_is_the_jsons():
    assert first_cells(PAGE, "| field | meaning |") == list(json.loads(of_page("json")[0]))


def test_the_table_of_meanings_is_the_codes():
    source = Path(meaning.__file__).read_text(encoding="utf-8")
    kinds = set(re.findall(r'kind="(\w+)"', source)) | {"blocks", "idle_in_transaction"}
    assert set(first_cells(PAGE, "| kind | level | when |")) == kinds
    numbers = {
        "leak": (meaning.LEAKED_SESSIONS, meaning.ONE_REQUEST, meaning.QUIET_FOR),
        "kept": (meaning.KEPT_SESSIONS, meaning.ONE_REQUEST),
        "blocks": (meaning.HELD_FOR,),
        "slots_short": (meaning.NEARLY_FULL,),
        "superuser": (meaning.KEPT_SESSIONS,),
        "pooler": (meaning.POOLED_ROLES,),
    }
    for kind, values in numbers.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{kind}`"))
        for value in values:
            number = value.total_seconds() if isinstance(value, timedelta) else value
            assert re.search(rf"\b{number:g}\b", row), (kind, value)


def test_the_table_of_exit_codes_is_the_codes():
    table = PAGE.split("## Exit codes", 1)[1]
    codes = [int(code) for code in re.findall(r"^\| (\d) \|", table, re.MULTILINE)]
    assert codes == [int(code) for code in Exit if code is not Exit.BLIND]


def test_the_columns_of_the_page_are_the_tables():
    header = of_page("text report")[0].splitlines()[3].split()
    assert sorted(first_cells(PAGE, "| column | meaning |")) == sorted(header)


def example(*rows, seconds):
    policy = Policy(
        idle_for=timedelta(minutes=10),
        login_role="postgres",
        database="example",
        users=("example",),
    )
    return look(
        *rows,
        policy=policy,
        slots=37,
        alias="operator",
        address="postgres@127.0.0.1:5432/example",
        observed_at=datetime(2026, 11, 25, 3, 12, tzinfo=timezone.utc) + timedelta(seconds=seconds),
    )


def test_the_examples_of_the_how_to_page_are_what_the_report_prints():
    own = leaked(99, application_name="conn_guard:report", user="postgres", database="example")
    fields = {"application_name": "example:server", "user": "example", "database": "example"}
    rows = [
        leaked(n, last="SELECT annotations_asset", idle_for=timedelta(seconds=15 + n % 2), **fields)
        for n in range(19)
    ]
    leak, cured = blocks(HOW_TO, "text")
    for block, shown, seconds in ((leak, rows, 40), (cured, [], 122)):
        snapshot = example(*shown, own, seconds=seconds)
        rest = [each for each in snapshot.rows if each.session.pid != own.session.pid]
        snapshot = replace(snapshot, rows=rest)
        assert block.text.splitlines() == render_report(snapshot, meanings(snapshot))


def test_links_lead_somewhere():
    for file in (DOCS / "reference" / "conn_report.md", DOCS / "how-to" / f"{HOW_TO}.md"):
        text = file.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
            other = file.parent / target if target else file
            assert other.exists(), target
            headings = (
                re.findall(r"^#+ (.*)$", other.read_text("utf-8"), re.MULTILINE) if anchor else []
            )
            assert not anchor or anchor in {
                re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings
            }, anchor
