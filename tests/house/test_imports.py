"""The pure modules and their tests need neither Django nor a driver."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import conn_guard

ROOT = Path(__file__).resolve().parents[2]
PURE = """
import sys
sys.path.insert(0, "src")
sys.modules.update(django=None, asgiref=None, psycopg=None, psycopg2=None)
import conn_guard, conn_guard.sessions.census, conn_guard.sessions.stamp
import conn_guard.sessions.render.advice, conn_guard.sessions.render.json
import conn_guard.sessions.render.html, conn_guard.sessions.render.report_json
import conn_guard.sessions.render.metrics, conn_guard.sessions.render.text
import conn_guard.sessions.render.report_text, conn_guard.probe.render
print(conn_guard.__version__)
"""


def test_the_package_and_its_pure_modules_need_no_django(run):
    assert run(sys.executable, "-I", "-c", PURE) == conn_guard.__version__


@pytest.mark.parametrize("name", conn_guard.__all__)
def test_a_public_name_comes_when_it_is_asked_for(name):
    assert getattr(conn_guard, name).__doc__


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'close_everything'"):
        _ = conn_guard.close_everything


def test_the_tests_of_the_pure_modules_pass_where_django_is_not_installed(run, fresh_python):
    paths = [
        f"tests/core/test_{room}.py"
        for room in ("census", "policy", "probe", "refused", "report", "session", "stamp")
    ]
    assert " passed" in run(fresh_python("pytest", "hypothesis"), "-m", "pytest", "-q", *paths)
