"""The page about many servers: its commands, manifest and modules run as they stand."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from tests.postgres.howto import blocks, lines
from tests.support.own_server import own_server

PAGE = "many-servers"
ALIASES = ("orders", "stock", "billing")
SETTINGS = """
from tests.settings import *
DATABASES = {{
    "default": {{}},
    **{{
        name: {{
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": "{port}",
            "NAME": "postgres",
            "USER": name,
        }}
        for name in {aliases!r}
    }},
}}
"""


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with django_db_blocker.unblock(), own_server(roles=dict.fromkeys(ALIASES, "LOGIN")) as server:
        yield server


@pytest.fixture
def shop(server, tmp_path):
    """Return a function that runs words in the project of the page."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "settings.py").write_text(
        SETTINGS.format(port=server.server.port, aliases=ALIASES)
    )
    (tmp_path / "manage.py").write_text(
        "import sys\nfrom django.core.management import execute_from_command_line\n"
        "execute_from_command_line(sys.argv)\n"
    )
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)

    def run(*words, **environ):
        return subprocess.run(
            words,
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{python.parent}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(
                    [str(tmp_path), *(each for each in sys.path if each)]
                ),
                "DJANGO_SETTINGS_MODULE": "shop.settings",
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.folder = tmp_path
    yield run
    server.clean()


@pytest.mark.parametrize("line", lines(PAGE))
def test_each_command_reaps_for_every_alias_in_order(shop, line):
    done = shop(*line.split())
    assert done.returncode == 0, done.stderr
    assert [each.split()[0] for each in done.stdout.splitlines()] == list(ALIASES)


def test_the_pods_of_the_indexed_job_share_the_aliases(shop):
    yaml = pytest.importorskip("yaml")
    (block,) = blocks(PAGE, "yaml")
    job = yaml.safe_load(block.text)["spec"]["jobTemplate"]["spec"]
    assert (job["completionMode"], job["template"]["spec"]["restartPolicy"]) == ("Indexed", "Never")
    (container,) = job["template"]["spec"]["containers"]
    environ = {each["name"]: each["value"] for each in container["env"]}
    assert environ == {"PODS": str(job["completions"]), "ALIASES": " ".join(ALIASES)}
    reaped = []
    for index in range(job["completions"]):
        done = shop(*container["command"], JOB_COMPLETION_INDEX=str(index), **environ)
        assert done.returncode == 0, done.stderr
        reaped.append([line.split()[0] for line in done.stdout.splitlines()])
    assert reaped == [["orders", "billing"], ["stock"]]


def test_the_alias_of_the_page_is_one_that_django_takes():
    alias, _ = blocks(PAGE, "python")
    read = eval(f"{{{alias.text}}}")
    assert list(read) == ["orders"]
    assert read["orders"]["OPTIONS"] == {"target_session_attrs": "read-write"}


def test_celery_knows_the_task_and_its_aliases(shop):
    pytest.importorskip("celery")
    _, module = blocks(PAGE, "python")
    (shop.folder / "shop" / "celery.py").write_text(module.text)
    ask = (
        "import django; django.setup(); from shop.celery import app; app.finalize();"
        " app.conf.task_always_eager = True; (entry,) = app.conf.beat_schedule.values();"
        " print(app.tasks[entry['task']].apply(kwargs=entry['kwargs']).state)"
    )
    done = shop("python", "-c", ask)
    assert (done.stdout, done.returncode) == ("SUCCESS\n", 0), done.stderr
