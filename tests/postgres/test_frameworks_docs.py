"""The page on frameworks: its Python code runs, and its tables have a row for each framework."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres.framework_site.workers import FRAMEWORKS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "background-frameworks.md").read_text()
THEN = """
from django.utils.module_loading import import_string
from huey.api import Huey

assert Huey.execute.closes_connections
for name in DRAMATIQ_BROKER["MIDDLEWARE"]:
    if "Admin" not in name:
        import_string(name)
assert type(broker.middleware[0]) is ConnectionGuardMiddleware
for function in (count_users_later.func, count_users_as_a_task.func, count_users_every_minute):
    assert function.__wrapped__
assert UserCount.receive.__wrapped__
assert len(scheduler.get_jobs()) == 1
"""


def test_the_python_code_of_the_page_runs():
    for module in ("huey", "django_dramatiq", "procrastinate", "django_tasks_db", "channels"):
        pytest.importorskip(module)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    script = "\n".join(["import django", "django.setup()", *blocks, THEN])
    if sys.version_info < (3, 12):
        script = script.replace("from django.tasks import", "from django_tasks import")
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_first_table_says_of_each_framework_what_the_tests_of_its_line_see():
    rows = re.findall(r"^\| ([^|]+) \| [\w-]+ [\d.]+ \|.*\| (\d) / \d \|$", PAGE, re.MULTILINE)
    assert rows == [(framework, "0") for framework in FRAMEWORKS]
