"""promtool finds no fault in the metrics of the reaper and the report."""

from __future__ import annotations

import io
import subprocess
from dataclasses import replace

import pytest
from django.core.management import call_command

from conn_guard.sessions.render.metrics import render_metrics
from conn_guard.sessions.report import Exit, Report, Status
from tests.core.test_report import DRY, NAUGHTY, REPORT


@pytest.fixture
def check(needs_program):
    def run(text: str) -> None:
        done = subprocess.run(
            [needs_program("promtool"), "check", "metrics"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    return run


@pytest.mark.django_db(transaction=True)
def test_the_reapers_file(check, tmp_path):
    path = tmp_path / "idle_reaper.prom"
    arguments = ("--database", "default", "--idle-for", "1d", "--metrics-file", str(path))
    call_command("idle_reaper", *arguments, "--dry-run", verbosity=0)
    check(path.read_text())
    call_command("idle_reaper", *arguments, verbosity=0)
    check(path.read_text())
    assert "conn_guard_reaper_last_success_timestamp_seconds" in path.read_text()


@pytest.mark.django_db(transaction=True)
def test_the_reports_format(check):
    out = io.StringIO()
    call_command("conn_report", "--format", "prometheus", stdout=out)
    check(out.getvalue())
    assert "conn_guard_server_sessions" in out.getvalue()


@pytest.mark.parametrize("alias", ["default", NAUGHTY, 'a\\b"c', ""])
def test_runs_of_every_outcome(check, alias):
    others = [
        replace(DRY, alias="dry"),
        replace(REPORT, alias="second", status=Status.ALREADY_RUNNING),
        Report(alias="lost", failure="gone", failed_with=Exit.UNREACHABLE),
    ]
    check(render_metrics([replace(REPORT, alias=alias), *others], now=2e9, earlier={"lost": 1e9}))
    check(render_metrics([], now=2e9, earlier={}))
