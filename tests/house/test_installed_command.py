"""The wheel with the extra ``cli`` is all that ``conn-guard`` needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.second_session import Session
from tools.local_postgres import LocalPostgres

ROOT = Path(__file__).resolve().parents[2]
FIRST_REPORT = re.compile(r"`uvx --from '([^']+)' (conn-guard report) --dsn postgresql://[^`]+`")
Installed = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def server():
    with LocalPostgres(max_connections=20) as started:
        yield started


@pytest.fixture
def installed(run, fresh_python, tmp_path) -> Installed:
    """Return a function that runs the installed command with *environment* alone."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "--directory", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    script = fresh_python(f"{wheel}[cli]").parent / "conn-guard"

    def conn_guard(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, *arguments],
            cwd=tmp_path,
            env={"PATH": os.defpath, "HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    return conn_guard


def test_the_installed_command_reports_reaps_and_advises(installed, server, tmp_path):
    file = tmp_path / "services"
    file.write_text(f"[shop]\nhost={server.host}\nport={server.port}\nuser=postgres\n")
    url = f"postgresql://postgres@{server.host}:{server.port}/postgres"
    ways = (
        {"DATABASE_URL": url},
        {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": "postgres"},
        {"PGSERVICE": "shop", "PGSERVICEFILE": str(file)},
    )
    address = {"host": server.host, "port": server.port, "user": "postgres", "dbname": "postgres"}
    session = Session(**address, application_name="shop")
    try:
        for way in ways:
            (line,) = installed("report", "--format", "json", **way).stdout.splitlines()
            assert [each["application"] for each in json.loads(line)["groups"]] == ["shop"]
            lines = installed("reap", "--dry-run", "--format", "json", **way).stdout.splitlines()
            assert json.loads(lines[0])["pid"] == session.pid
            assert "ALTER ROLE postgres" in installed("advise", **way).stdout
    finally:
        session.close()


def test_the_readme_leads_from_a_bare_machine_to_a_report():
    ((package, command),) = FIRST_REPORT.findall((ROOT / "README.md").read_text())
    assert (package, command) == (".[cli]", "conn-guard report")
