"""The settings, commands, SQL and tables that README and tutorial show, run and compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from conn_guard import conf
from tests.example.conftest import CHECKOUT
from tests.example.test_acts import download

README = CHECKOUT / "README.md"
DOCS = CHECKOUT / "docs"
TUTORIAL = DOCS / "tutorial" / "ten-minutes.md"


def blocks(page: Path, language: str = "") -> list[str]:
    """Return the fenced blocks of *page* in *language*."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for written_in, text in found if written_in == language]


def settings_of(page: Path, *, having: str = "") -> str:
    """Return the blocks of *page* that are settings and contain *having*, as one text."""
    found = [
        each
        for each in blocks(page, "python")
        if re.match("INSTALLED_APPS|MIDDLEWARE|DATABASES|LOGGING", each)
    ]
    return "\n".join(each for each in found if having in each)


def commands_of(page: Path) -> list[str]:
    lines = [line for block in blocks(page) for line in block.splitlines()]
    return [
        line.removeprefix("manage.py ").partition("  #")[0].strip()
        for line in lines
        if line.startswith("manage.py ")
    ]


@pytest.fixture
def staged(stage, tmp_path):
    """Return a function that gives the stage with *text* below the example's settings."""

    def with_settings(text: str, *, base: str = "example.settings", **environment: str):
        (tmp_path / "written.py").write_text(f"import os\nfrom {base} import *\n{text}")
        path = os.pathsep.join([str(tmp_path), stage.environment["PYTHONPATH"]])
        known = {
            **stage.environment,
            "PYTHONPATH": path,
            "DJANGO_SETTINGS_MODULE": "written",
            "EXAMPLE_GUARD": "off",
        }
        return replace(stage, environment={**known, **environment})

    return with_settings


@pytest.fixture
def reaper_role(stage, ask_operator):
    """Run the tutorial's SQL for the reaper's role under other names; give the role's name."""
    role = f"{stage.role}_reaper"
    _, create, limit = blocks(TUTORIAL, "sql")
    for statement in re.findall(r"[^;]+;", create + limit):
        if (
            int(stage.postgres.split(".")[0]) >= 16
            or "pg_use_reserved_connections" not in statement
        ):
            ask_operator(
                re.sub(r"\bexample\b", stage.role, statement.replace("example_reaper", role))
            )
    yield role
    ask_operator(f"ALTER ROLE {stage.role} CONNECTION LIMIT {stage.slots}")
    ask_operator(f"DROP ROLE {role}")


@pytest.mark.parametrize("page", [README, TUTORIAL], ids=["readme", "tutorial"])
def test_the_install_command_installs_from_inside_the_checkout(page, tmp_path):
    (command,) = [each.strip() for each in blocks(page) if each.startswith("pip install")]
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(tmp_path)]
    words = [sys.executable, "-m", "pip", *command.split()[1:], *offline]
    subprocess.run(words, cwd=CHECKOUT, check=True)
    assert (tmp_path / "conn_guard" / "middleware.py").exists()


def test_the_settings_of_the_readme_are_clean_and_connect(staged):
    stage = staged(settings_of(README))
    done = stage.manage("check", "--database", "default")
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout, done.stderr
    code = (
        "from django.db import connections as c; c['default'].ensure_connection();"
        " print(type(c['default']).__module__)"
    )
    done = stage.manage("shell", "-v0", "-c", code)
    assert done.stdout.strip() == "conn_guard.engine.postgresql.base", done.stderr


def test_the_commands_of_the_readme_run(staged):
    stage = staged(settings_of(README))
    commands = commands_of(README)
    assert len(commands) == 2
    inline = re.findall(r"`manage\.py (.*?)`", README.read_text())
    assert {"check", "idle_reaper", "idle_reaper --dry-run", "idle_reaper --advise"} <= set(inline)
    for command in [*commands, *inline]:
        done = stage.manage(*(word.strip("'") for word in command.split()))
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_the_function_of_the_readme_closes_what_it_opened(staged):
    (function,) = [each for each in blocks(README, "python") if "closing_connections" in each]
    code = (
        f"{function}\nfrom django.db import connection\nassert nightly() =="
        " 1\nprint(connection.connection)"
    )
    done = staged(settings_of(README)).manage("shell", "-v0", "-c", code)
    assert done.stdout.strip() == "None", done.stderr


def test_the_settings_table_of_the_readme_is_conf():
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `(.+?)` \|", README.read_text(), re.MULTILINE))
    assert tuple(rows) == conf.KEYS
    raw = {key: eval(default, {"timedelta": timedelta}) for key, default in rows.items()}
    settings, problems = conf.parse(raw)
    assert problems == []
    assert settings == conf.Settings()


def test_the_readme_shows_the_acts_that_the_demo_plays():
    from demo.acts import programme

    shown = re.findall(r"^(\d\w?) +(.+?) +\d+ +\d+ +\d+ +\d+$", README.read_text(), re.MULTILINE)
    assert shown == [(act.number, act.title) for act in programme()]


@pytest.mark.parametrize("page", [README, TUTORIAL], ids=["readme", "tutorial"])
def test_dev_knows_the_commands_shown(page):
    known = subprocess.run(
        [sys.executable, "dev.py", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout
    shown = set(re.findall(r"python3 dev\.py (\w+)", page.read_text()))
    assert "demo" in shown
    for command in shown:
        assert re.search(rf"^  {command} ", known, re.MULTILINE)


def test_the_query_of_the_tutorial_names_the_leak(stage, client_of, sessions, ask_operator):
    query = blocks(TUTORIAL, "sql")[0]
    with stage.serve("off") as server:
        download(server, client_of)
        left = sessions()
        rows = [row[:4] for row in ask_operator(query) if row[1] == stage.role]
    assert rows == [("example:server", stage.role, "idle", left)]


def test_the_settings_and_commands_of_the_tutorial_run(staged, reaper_role):
    text = settings_of(TUTORIAL).replace("example_reaper", reaper_role)
    stage = staged(text, REAPER_PASSWORD="choose one")
    commands = commands_of(TUTORIAL)
    assert "idle_reaper --database reaper --user example" in commands
    for command in commands:
        done = stage.manage(*re.sub(r"\bexample\b", stage.role, command).split())
        assert done.returncode == 0, f"{command}: {done.stderr}"
        if command == "check":
            assert "no issues" in done.stdout, done.stderr


@pytest.mark.parametrize("logging", ['LOGGING["loggers"]', "LOGGING = {"])
def test_the_log_names_the_view_that_leaks(staged, client_of, until, logging):
    parts = [
        settings_of(TUTORIAL, having=name) for name in ("INSTALLED_APPS", "MIDDLEWARE =", logging)
    ]
    assert all(parts)
    stage = staged("\n".join(parts))
    (line,) = [block.strip() for block in blocks(TUTORIAL) if block.startswith("The response of")]
    with stage.serve("off") as server:
        download(server, client_of, 2)
        until(lambda: line in stage.log_of("off"))


def test_cvat_is_cured_without_a_change(stage, staged, client_of, sessions, tmp_path):
    """The example stands in for CVAT, because it has CVAT's leak."""
    (tmp_path / "cvat" / "settings").mkdir(parents=True)
    (tmp_path / "cvat" / "settings" / "production.py").write_text(
        "from example.settings import *\n"
    )
    (guarded,) = blocks(DOCS / "how-to" / "cvat.md", "python")
    with staged(guarded).serve("off") as server:
        assert set(download(server, client_of)) == {200}
        assert sessions() == 0


def test_the_index_names_every_page():
    linked = {
        (DOCS / link).resolve()
        for link in re.findall(r"\]\(([^)#]+)", (DOCS / "README.md").read_text())
    }
    assert linked >= {page for page in DOCS.rglob("*.md") if page != DOCS / "README.md"}
