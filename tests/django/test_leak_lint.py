"""``manage.py leak_lint`` and ``conn-guard lint``, with the examples of their page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from conn_guard.lint.launches import RUNNERS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "leak_lint.md").read_text("utf-8")
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]
SAID = re.findall(r"^```\n(shop/.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]


@pytest.fixture(autouse=True)
def shop(tmp_path, monkeypatch) -> Path:
    """The page's example, below the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "views.py").write_text(CODE)
    return folder


def rows(under: str) -> list[list[str]]:
    """Return the cells of the page's table under the heading *under*."""
    text = PAGE.partition(f"\n## {under}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    return [re.split(r" \| ", line) for line in lines[1:]]


def test_the_pages_example_says_what_the_page_says(capsys, monkeypatch):
    monkeypatch.setattr("conn_guard.pages._home", lambda: "https://docs.example/en/")
    with pytest.raises(
        CommandError, match=r" See https://docs\.example/en/reference/leak_lint\.html$"
    ) as failed:
        call_command("leak_lint", "shop")
    assert failed.value.returncode == 3
    assert capsys.readouterr().out == SAID


def test_without_a_path_the_current_folder_is_read(capsys):
    with pytest.raises(CommandError):
        call_command("leak_lint")
    assert capsys.readouterr().out == SAID


def test_code_that_closes_is_exit_0(shop, capsys):
    closed = CODE.replace("def count_orders", "@closing_connections\ndef count_orders")
    (shop / "views.py").write_text(closed)
    call_command("leak_lint", "shop/views.py")
    assert capsys.readouterr().out == "0 findings in 1 Python file\n"


def test_json_has_the_fields_of_the_page(shop, capsys):
    (shop / "old.py").write_text("print 'Thread'")
    with pytest.raises(CommandError):
        call_command("leak_lint", "shop", "--format", "json")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event.pop("event") for event in events] == ["finding", "summary"]
    told = [re.findall(r"`(\w+)`", fields) for _, fields in rows("Options")[-2:]]
    assert [list(event) for event in events] == told
    assert events[1] == {
        "files": 2,
        "findings": 1,
        "unreadable": ["shop/old.py"],
        "exit": 3,
    }


def test_a_file_that_can_not_be_read_is_one_line_on_stderr(shop, capsys):
    (shop / "views.py").write_text("print 'Thread'")
    call_command("leak_lint", "shop")
    written = capsys.readouterr()
    assert written.out == "0 findings in 1 Python file\n"
    assert re.fullmatch(r"shop/views.py: can't be read and was left out: .*\n", written.err)


def test_a_path_that_does_not_exist_is_exit_2():
    with pytest.raises(CommandError, match=r"^There is no 'shp'\. Name a file or a folder\.$") as e:
        call_command("leak_lint", "shp")
    assert e.value.returncode == 2


def test_a_path_without_python_is_exit_2(shop):
    (shop / "views.py").rename(shop / "views.txt")
    with pytest.raises(CommandError, match=r"^shop: there is no Python file\.") as failed:
        call_command("leak_lint", "shop")
    assert failed.value.returncode == 2


def test_a_control_character_of_a_name_reaches_no_terminal(shop, capsys):
    (shop / "views.py").rename(shop / "a\x1b[31m.py")
    with pytest.raises(CommandError):
        call_command("leak_lint", "shop")
    assert "\x1b" not in capsys.readouterr().out


def test_the_page_has_each_slug():
    assert [slug.strip("`") for slug, _ in rows("What is named")] == list(RUNNERS)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["shop"], 3),
        (["--format", "json", "shop"], 3),
        (["nothing"], 2),
        (["--fromat", "json"], 2),
        (["shop", "--dsn", "postgresql://db/shop"], 2),
        (["--help"], 0),
    ],
)
def test_conn_guard_lint_needs_no_settings_and_no_server(tmp_path, arguments, code):
    named = ("DATABASE_URL", "DJANGO_SETTINGS_MODULE", "PG", "CONN_GUARD")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(named)}
    done = subprocess.run(
        [sys.executable, "-m", "conn_guard", "lint", *arguments],
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)
    assert "Traceback" not in done.stderr
