"""A project that installs the admin page as the documentation says."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres.howto import HOW_TO, blocks, lines

ROOT = Path(__file__).parents[2]
NAME = "see-sessions-in-the-admin"
PAGE = (HOW_TO / f"{NAME}.md").read_text(encoding="utf-8")
SETTINGS = """
from tests.settings import *
from tests.postgres.admin_site import MIDDLEWARE, TEMPLATES
MIDDLEWARE = MIDDLEWARE[1:]
MIGRATION_MODULES = {}
STATIC_URL = "static/"
ROOT_URLCONF = "tests.postgres.admin_site.urls"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "host.sqlite3"}}
"""
HOST = """
import io, json, sys
import django
from django.core.management import call_command
django.setup()
from django.contrib.auth.models import Permission
for words in json.loads(sys.argv[1]):
    call_command(*words, verbosity=0)
call_command("check", fail_level="WARNING")
call_command("makemigrations", check=True, dry_run=True, verbosity=0)
for everything in (False, True):
    dumped = io.StringIO()
    call_command("dumpdata", "conn_guard_admin", use_base_manager=everything, stdout=dumped)
    assert dumped.getvalue().strip() == "[]"
found = Permission.objects.filter(content_type__app_label="conn_guard_admin")
print(*sorted(f"conn_guard_admin.{each.codename}" for each in found))
"""


def test_the_permissions_are_made_without_a_migration(tmp_path):
    (settings,) = blocks(NAME, "python", "settings")
    (tmp_path / "host_settings.py").write_text(f"{SETTINGS}{settings.text}\n")
    commands = [shlex.split(line) for line in lines(NAME)]
    assert all(words[:2] == ["python", "manage.py"] for words in commands)
    done = subprocess.run(
        [sys.executable, "-c", HOST, json.dumps([words[2:] for words in commands])],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "DJANGO_SETTINGS_MODULE": "host_settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    permissions = done.stdout.split("\n")[-2].split()
    assert permissions == [
        "conn_guard_admin.terminate_session",
        "conn_guard_admin.view_session",
    ]
    assert all(f"| `{each}` |" in PAGE for each in permissions)


def test_the_block_about_another_site_is_the_tests_own():
    (block,) = blocks(NAME, "python", "site")
    urls = (Path(__file__).parent / "admin_site" / "urls.py").read_text()
    assert [line for line in block.text.splitlines() if line not in urls.splitlines()] == []


@pytest.mark.parametrize(
    "words",
    ["Terminate…", "Terminate selected sessions", "Go", "Yes, terminate", "Refresh every 5 s"],
)
def test_the_page_names_the_buttons_as_the_templates_do(words):
    folder = ROOT / "src/conn_guard/contrib/admin/templates/admin/conn_guard_admin/session"
    templates = "".join(each.read_text() for each in folder.glob("*.html"))
    assert f"**{words}**" in PAGE
    assert words.replace("5", "{{ every_seconds }}") in templates
