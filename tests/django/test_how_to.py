"""The Python code of the how-to guides runs and leaves no connection open."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from tests.django.test_closing import in_loop

ROOT = Path(__file__).resolve().parents[2]
HOW_TO = ROOT / "docs" / "how-to"


def blocks(name: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (HOW_TO / name).read_text(), re.MULTILINE | re.DOTALL
    )


def execute(name: str) -> dict[str, object]:
    """Return the names that the guide's blocks define when they run in one module."""
    namespace: dict[str, object] = {"__name__": "how_to"}
    for block in blocks(name):
        exec(compile(block, name, "exec"), namespace)
    return namespace


class Rounds:
    """An event that is set after some rounds."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def wait(self, timeout: float) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.django_db(transaction=True)
def test_threads_and_jobs(worker, capsys):
    guide = execute("threads-and-jobs.md")
    assert guide["future"].result(timeout=30) == 0
    guide["executor"].shutdown()
    run = {
        "count_users": guide["count_users"],
        "report_for_ever": lambda: guide["report_for_ever"](Rounds(2)),
        "audit": in_loop(guide["audit"]),
        "audit_twice": in_loop(guide["audit_twice"]),
        "Command": guide["Command"]().handle,
        "usernames": lambda: list(guide["usernames"]()),
    }
    for name, function in run.items():
        worker(function)
        assert worker(lambda: connections["default"].connection) is None, name
        assert in_loop(sync_to_async(lambda: connections["default"].connection))() is None, name
    assert capsys.readouterr().out == "0\n0\n"
    defined = set(
        re.findall(
            r"^(?:async )?(?:def|class) (\w+)",
            "\n".join(blocks("threads-and-jobs.md")),
            re.MULTILINE,
        )
    )
    assert defined == set(run)


CELERY_IS_WATCHED = """
from celery.signals import task_postrun
receivers = [receiver.__module__ for _, receiver in task_postrun.receivers]
assert "conn_guard.contrib.celery" in receivers
"""
RQ_IS_WATCHED = """
from rq import SimpleWorker, Worker
assert Worker.perform_job.__wrapped__ and SimpleWorker.perform_job.__wrapped__
"""


@pytest.mark.parametrize(
    ("number", "then"),
    [(0, CELERY_IS_WATCHED), (1, f"ShopConfig.ready(None)\n{RQ_IS_WATCHED}"), (2, RQ_IS_WATCHED)],
    ids=["celery", "django-rq", "rq"],
)
def test_celery_and_rq(number, then):
    pytest.importorskip("celery")
    pytest.importorskip("rq")
    variables = {
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
    }
    script = blocks("celery-and-rq.md")[number] + then
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
