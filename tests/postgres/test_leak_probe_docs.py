"""The pages about the probe: their commands run, and their tables and examples are the code's."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from django.core.management import BaseCommand, CommandError, call_command, load_command_class
from django.db import connection

from conn_guard.probe import Mode, Options, Target, UrlReport, Verdict, probe_urls
from conn_guard.probe.render import render_probe_json, render_reports
from conn_guard.probe.verdict import LEAKS_EXIT, UNCLEAR_EXIT, UNREACHABLE_EXIT, Requests
from tests.core.test_probe import CLEAN, CURE, LEAK
from tests.postgres.howto import blocks, first_cells, lines
from tests.support.web_server import web_server

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "leak_probe.md").read_text(encoding="utf-8")
HOW_TO = "find-the-url-that-leaks"
ORIGIN = "http://127.0.0.1:8000"


def of_page(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def site(session_factory, tmp_path, monkeypatch):
    """A web server whose pages use the test database, and the files that the pages name."""

    def page(request):
        session = session_factory()
        session.execute("SELECT pg_sleep(0.01)")
        session.close()
        request.answer(404 if request.path == "/missing/" else 200)

    with web_server(dict.fromkeys(("/cart/", "/export/", "/missing/"), page)) as server:
        url = server.url("/cart/")
        (tmp_path / "urls.txt").write_text(f"{url}\n")
        entries = [{"request": {"method": "GET", "url": url}}]
        (tmp_path / "afternoon.har").write_text(json.dumps({"log": {"entries": entries}}))
        monkeypatch.chdir(tmp_path)
        yield server


COMMANDS = [line for block in of_page("sh") for line in block.splitlines()] + lines(HOW_TO)


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_each_command_of_the_pages_runs(line, site):
    pytest.importorskip("aiohttp")
    few = "--requests 6 --concurrency 2 --settle 0.2s"  # the later value of an option counts
    program, script, name, *arguments = shlex.split(f"{line} {few}".replace(ORIGIN, site.url("")))
    assert (program, script, name) == ("python", "manage.py", "leak_probe")
    stdout = io.StringIO()
    try:
        call_command(name, *arguments, stdout=stdout, stderr=io.StringIO())
    except CommandError as error:
        # Nothing here has the application_name of the page's example.
        assert (error.returncode, "shop*" in line) == (UNCLEAR_EXIT, True), str(error)  # noqa: PT017
    assert bool(stdout.getvalue()) is ("-v 0" not in line)


def test_the_commands_for_a_project_without_any_change_run(site):
    pytest.importorskip("aiohttp")
    (block,) = blocks(HOW_TO, "sh", "bare")
    known = connection.settings_dict
    script = (
        block.text.replace(ORIGIN, site.url(""))
        .replace("shop@127.0.0.1:5432/shop", "{USER}@{HOST}:{PORT}/{NAME}".format_map(known))
        .replace("conn-guard", shlex.join([sys.executable, "-m", "conn_guard"]))
    )
    bare = {name: text for name, text in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        ["sh", "-euc", f"{script} --requests 6 --concurrency 2 --settle 0.2s"],
        env={**bare, "PGPASSWORD": known["PASSWORD"], "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("clean") == 2


def test_the_python_of_the_page_runs(site):
    pytest.importorskip("aiohttp")
    (block,) = of_page("python")
    names: dict = {}
    exec(compile(block, "leak_probe.md", "exec"), names)
    assert names["leaking_urls"](site.url("/cart/")) == []


def test_the_table_of_options_is_the_parsers():
    parser = load_command_class("conn_guard", "leak_probe").create_parser("manage.py", "any")
    djangos = {action.dest for action in BaseCommand().create_parser("manage.py", "any")._actions}
    ours = {
        option: action.metavar or "|".join(action.choices or ())
        for action in parser._actions
        for option in action.option_strings
        if action.dest not in djangos
    }
    cells = [cell.replace("\\", "") for cell in first_cells(PAGE, "## Options")]
    assert cells == [" ".join(filter(None, each)) for each in ours.items()]


def test_options_has_a_field_for_each_option_of_the_command():
    named = {"modes", "headers", "cookies", "applications", "own_host"}
    flags = {f"--{each.name.replace('_', '-')}" for each in fields(Options)} - {
        f"--{each.replace('_', '-')}" for each in named
    }
    assert flags <= {cell.split()[0] for cell in first_cells(PAGE, "## Options")}


def test_the_examples_are_what_the_probe_prints():
    (text,) = of_page("text report")
    assert text.splitlines() == render_reports([LEAK, CLEAN], cure=CURE)
    (example,) = of_page("json")
    assert example.splitlines() == list(render_probe_json([LEAK], exit_code=3, seconds=12.5))


def test_the_tables_of_verdicts_columns_and_fields_are_the_codes():
    assert first_cells(PAGE, "| verdict | meaning |") == ["leaks", "keeps", "clean", "unclear"]
    assert {each.value for each in Verdict} == set(first_cells(PAGE, "| verdict | meaning |"))
    header = of_page("text report")[0].splitlines()[0].split()
    assert first_cells(PAGE, "| column | meaning |") == header
    assert first_cells(PAGE, "| field | meaning |") == list(
        json.loads(of_page("json")[0].split("\n")[0])
    )


def test_the_table_of_exit_codes_is_the_codes():
    table = PAGE.split("## Exit codes", 1)[1]
    codes = [int(code) for code in re.findall(r"^\| (\d) \|", table, re.MULTILINE)]
    assert codes == [0, 1, 2, LEAKS_EXIT, UNCLEAR_EXIT, UNREACHABLE_EXIT]


def shown(path, verdict, peak, *, left=0, leaked=0, last=(), errors=0):
    statuses = {200: 100 - errors, **({500: errors} if errors else {})}
    return UrlReport(
        target=Target(f"{ORIGIN}{path}"),
        mode=Mode.NORMAL,
        verdict=verdict,
        requests=Requests(statuses=statuses),
        peak=peak,
        left=left,
        leaked=leaked,
        last=last,
    )


def test_the_examples_of_the_how_to_page_are_what_the_probe_prints():
    download, threads = "/api/assets/1/download", "/api/tasks/1/statistics"
    both = [
        shown("/api/projects", Verdict.CLEAN, 5),
        shown("/api/tasks/1/export", Verdict.CLEAN, 5),
    ]
    asset, label = ["SELECT annotations_asset"], ["SELECT annotations_annotation"]
    examples = {
        "leak": [
            *both,
            shown(download, Verdict.LEAKS, 32, left=26, leaked=7, last=asset),
            shown(threads, Verdict.LEAKS, 36, left=31, leaked=22, last=label, errors=63),
        ],
        "cured": [*both, shown(download, Verdict.CLEAN, 4), shown(threads, Verdict.CLEAN, 20)],
    }
    for note, reports in examples.items():
        (block,) = blocks(HOW_TO, "text", note)
        assert block.text.splitlines() == render_reports(reports, cure="")[: len(reports) + 1]


def test_the_probe_is_public():
    assert probe_urls.__doc__
