"""The page for CVAT: its files and commands, tried on a small project in CVAT's shape."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path

import pytest

import conn_guard
from tests.postgres.howto import HOW_TO, blocks, lines
from tests.support import programs
from tests.support.own_server import own_server
from tests.support.polling import until

CHECKOUT = HOW_TO.parents[1]
STOCK = "cvat.settings.production"
DOWNLOADS = 20
# The collector is off, so a leak is as large as the number of downloads.
PRODUCTION = """
import gc, os
gc.disable()
SECRET_KEY = "cvat"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware", "cvat.urls.sync_only"]
ROOT_URLCONF = "cvat.urls"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"]},
    "loggers": {"django": {"level": "INFO"}},
}
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.getenv("CVAT_POSTGRES_HOST", "cvat_db"),
        "NAME": os.getenv("CVAT_POSTGRES_DBNAME", "cvat"),
        "USER": os.getenv("CVAT_POSTGRES_USER", "root"),
        "PASSWORD": os.getenv("CVAT_POSTGRES_PASSWORD", ""),
        "PORT": os.getenv("CVAT_POSTGRES_PORT", 5432),
        "OPTIONS": {"application_name": os.getenv("CVAT_POSTGRES_APPLICATION_NAME", "cvat")},
    }
}
"""
URLS = """
from django.db import connection
from django.http import HttpResponse
from django.urls import path

def sync_only(get_response):
    return get_response

def download(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse(headers={"X-Accel-Redirect": "/data/1", "Content-Length": "1000"})

urlpatterns = [path("api/jobs/1/data", download)]
"""
ASGI = "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n"
MANAGE = """
import sys
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""


@pytest.fixture(scope="module")
def server(django_db_blocker):
    """A server whose application's role is a superuser, as in CVAT's compose file."""
    with (
        django_db_blocker.unblock(),
        own_server(roles={"root": "LOGIN SUPERUSER"}) as server,
    ):
        server.ask("CREATE DATABASE cvat OWNER root")
        yield server


class Container:
    """A folder that stands for /home/django, and what `docker exec` runs in it."""

    def __init__(self, home: Path, server) -> None:
        self.home = home
        # The image's and compose's variables; none that CVAT's entrypoint sets.
        self.environ = {
            "PATH": os.defpath,
            "PYTHONPATH": str(Path(conn_guard.__file__).parents[1]),
            "DJANGO_SETTINGS_MODULE": "guarded",
            "CVAT_POSTGRES_HOST": server.server.host,
            "CVAT_POSTGRES_PORT": str(server.server.port),
        }

    def here(self, text: str) -> str:
        return text.replace("/opt/venv/bin/python", shlex.quote(sys.executable)).replace(
            "/home/django", str(self.home)
        )

    def exec(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line of the page that begins with `docker exec`."""
        words = shlex.split(self.here(line))
        assert words[:2] == ["docker", "exec"]
        words, environ = words[2:], dict(self.environ)
        while words[0] == "-e":
            name, _, value = words[1].partition("=")
            words, environ[name] = words[2:], value
        assert words[0] in {"cvat_utils", "cvat_server"}
        return subprocess.run(
            words[1:], cwd=self.home, env=environ, capture_output=True, text=True, timeout=60
        )

    @contextmanager
    def serve(self, settings: str) -> Iterator[tuple[int, Path]]:
        """Run uvicorn with *settings*, as CVAT does; give its port and its log."""
        pytest.importorskip("uvicorn")
        log = self.home / "uvicorn.log"
        environ = {
            **self.environ,
            "DJANGO_SETTINGS_MODULE": settings,
            "CVAT_POSTGRES_APPLICATION_NAME": "cvat:server",
        }
        words = [sys.executable, "-m", "uvicorn", "--port", "0", "cvat.asgi:application"]
        with (
            log.open("w") as output,
            subprocess.Popen(
                words, cwd=self.home, env=environ, stdout=output, stderr=output
            ) as process,
        ):
            try:
                running = until(
                    lambda: re.search(r"running on http://127.0.0.1:(\d+)", log.read_text()),
                    timeout=30,
                )
                yield int(running[1]), log
            finally:
                process.terminate()
                process.wait(timeout=30)


@pytest.fixture
def container(server, tmp_path):
    (guarded,) = blocks("cvat", "python", "")
    files = {
        "cvat/__init__.py": "",
        "cvat/asgi.py": ASGI,
        "cvat/settings/__init__.py": "",
        "cvat/settings/production.py": PRODUCTION,
        "cvat/urls.py": URLS,
        "guarded.py": guarded.text + "\n",
        "manage.py": MANAGE,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    yield Container(tmp_path, server)
    server.clean()


def download(port: int) -> list[int]:
    def ask(_: int) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/api/jobs/1/data")
            response = connection.getresponse()
            with pytest.raises(IncompleteRead):
                response.read()
            return response.status
        finally:
            connection.close()

    with ThreadPoolExecutor(5) as pool:
        return list(pool.map(ask, range(DOWNLOADS)))


def left(server, name: str = "cvat:server") -> int:
    statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    return server.ask(statement, [name])[0][0]


def test_every_block_is_of_a_kind_that_is_tried():
    assert {(block.language, block.note) for block in blocks("cvat")} == {
        ("python", ""),
        ("python", "diagnosis"),
        ("sh", ""),
        ("sh", "pip"),
        ("sh", "compose"),
        ("sh", "host"),
        ("sh", "trial"),
        ("dockerfile", ""),
        ("yaml", "compose"),
        ("yaml", "helm"),
        ("psql", ""),
        ("crontab", ""),
        ("text", ""),
    }


def test_downloads_leave_sessions_with_cvats_own_settings_and_none_with_the_pages(
    server, container
):
    with container.serve(STOCK) as (port, _):
        assert set(download(port)) == {200}
        assert left(server) == DOWNLOADS
    until(lambda: not left(server))
    with container.serve("guarded") as (port, log):
        assert set(download(port)) == {200}
        until(lambda: not left(server))
        (traceback,) = blocks("cvat", "text")
        # The first line is httptools', the second h11's.
        assert any(line in log.read_text() for line in traceback.text.splitlines())
        assert "conn_guard" not in log.read_text()


def test_the_line_for_diagnosis_names_the_view_and_keeps_cvats_loggers(container):
    (line,) = blocks("cvat", "python", "diagnosis")
    ((target,),) = [node.targets for node in ast.parse(line.text).body]
    assert isinstance(target, ast.Subscript), "one logger is added, and LOGGING is not replaced"
    with (container.home / "guarded.py").open("a") as file:
        file.write(line.text + "\n")
    with container.serve("guarded") as (port, log):
        download(port)
        until(lambda: "The response of cvat.urls.download" in log.read_text())


def test_the_commands_run_with_the_images_and_composes_variables_alone(container):
    done = {line: container.exec(line.replace("--over 10s", "--over 1s")) for line in lines("cvat")}
    for line, each in done.items():
        assert each.returncode == 0, f"{line}: {each.stderr}"
    first, deploy, *_ = done.values()
    assert "no issues" in first.stdout
    assert "conn_guard.W307" in deploy.stderr


def test_the_crontab_lines_are_silent_and_end_cvats_sessions_but_no_workers(server, container):
    server.ask("CREATE ROLE cvat LOGIN")
    try:
        for line, user in zip(lines("cvat", "crontab"), ("root", "cvat"), strict=True):
            *times, command = line.split(maxsplit=5)
            assert times == ["*/5", "*", "*", "*", "*"]
            assert "%" not in command, "cron makes a new line of it"
            names = ("cvat", "cvat:server", "cvat:worker:export")
            sessions = {
                name: server.session(user, dbname="cvat", application_name=name) for name in names
            }
            server.rested(*sessions.values())
            done = container.exec(f"{command} --idle-for 0.1s")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            alive = {name for name, session in sessions.items() if server.alive(session)}
            assert alive == {"cvat:worker:export"}
    finally:
        server.clean()
        server.ask("DROP ROLE cvat")


def test_the_plain_role_can_migrate_and_leaves_slots_to_the_superuser(server, container):
    """The statements run as psql runs them: before \\gexec, each row is a statement."""
    root = server.session("root", dbname="cvat", application_name="root")
    root.execute("CREATE TABLE job (id serial PRIMARY KEY, name text)")
    root.execute("CREATE TABLE task (id int GENERATED ALWAYS AS IDENTITY)")
    root.execute("CREATE SEQUENCE numbers")
    root.execute("CREATE VIEW jobs AS SELECT name FROM job")
    (block,) = blocks("cvat", "psql")
    *plain, generator = block.text.removesuffix("\n\\gexec").split(";\n")
    try:
        for statement in plain:
            root.execute(statement)
        for (statement,) in root.execute(generator):
            root.execute(statement)
        role = server.session("cvat", dbname="cvat", application_name="cvat")
        role.execute("INSERT INTO job (name) VALUES ('a')")
        role.execute("ALTER TABLE job ADD COLUMN more int")
        role.execute("ALTER TABLE task ADD COLUMN more int")
        role.execute("ALTER SEQUENCE numbers RESTART")
        role.execute("CREATE OR REPLACE VIEW jobs AS SELECT name, more FROM job")
        role.execute("CREATE TABLE made (id int)")
        (grant,) = [each for each in plain if each.startswith("CREATE ROLE")]
        limit = int(re.search(r"CONNECTION LIMIT (\d+)", grant)[1])
        assert limit < 100 - 3
        assert root.execute(
            "SELECT rolsuper, rolconnlimit FROM pg_roles WHERE rolname = 'cvat'"
        ) == [(False, limit)]
        container.environ["CVAT_POSTGRES_USER"] = "cvat"
        deploy = container.exec(lines("cvat")[1])
        assert "conn_guard.W307" not in deploy.stderr
    finally:
        server.clean()
        server.ask("ALTER DATABASE cvat OWNER TO root")
        root = server.session("root", dbname="cvat", application_name="root")
        root.execute("DROP OWNED BY cvat CASCADE")
        root.execute("DROP ROLE cvat")


def test_the_backend_of_an_idle_session_is_found_and_ended_on_the_host(server):
    programs.require("ps")
    session = server.session("root", dbname="cvat", application_name="cvat:server")
    server.rested(session)
    look, kill = lines("cvat", "sh", "host")
    docker, script = shlex.split(look)[:3], shlex.split(look)[3:]
    assert docker == ["docker", "exec", "cvat_db"]
    found = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert str(session.pid) in [line.split()[0] for line in found.splitlines()]
    assert kill.startswith("docker exec cvat_db kill -TERM ")
    subprocess.run(["kill", "-TERM", str(session.pid)], check=True)
    until(lambda: not server.alive(session))


def test_the_trial_tells_a_version_that_leaks(server, container):
    programs.require("curl")
    before, load, rest, after = lines("cvat", "sh", "trial")
    assert before == after
    assert rest.split()[0] == "sleep"
    assert int(rest.split()[1]) > int(re.search(r"--idle-for (\d+)s", before)[1])
    look = before.replace("--idle-for 30s", "--idle-for 0.1s")
    with container.serve(STOCK) as (port, _):
        assert "would signal 0" in container.exec(look).stdout
        load = load.replace("localhost:8080", f"127.0.0.1:{port}")
        load = load.replace("seq 100", f"seq {DOWNLOADS}")
        subprocess.run(["sh", "-c", load], env={**os.environ, "TOKEN": "secret"}, timeout=120)
        until(lambda: f"would signal {DOWNLOADS}" in container.exec(look).stdout, timeout=30)


def test_the_dockerfile_installs_as_root_and_runs_as_cvats_user(tmp_path):
    pytest.importorskip("pip", reason="an environment made by uv has no pip")
    (block,) = blocks("cvat", "dockerfile")
    steps = [tuple(line.split(maxsplit=1)) for line in block.text.splitlines()]
    assert [name for name, _ in steps] == [
        "ARG",
        "FROM",
        "USER",
        "COPY",
        "RUN",
        "COPY",
        "USER",
    ]
    (_, image), (_, user), (_, wheel), (_, run), (_, settings), (_, last) = steps[1:]
    assert (image, user, last) == ("cvat/server:${CVAT_VERSION}", "root", "django")
    assert settings == "guarded.py /home/django/"
    pattern, folder = wheel.split()
    assert run.startswith("/opt/venv/bin/python -m pip install ")
    assert run.endswith(f" {folder}{pattern}")
    assert "--no-deps" in run.split()
    (line,) = lines("cvat", "sh", "pip")
    paths = {"guarded": str(tmp_path), "../conn_guard": str(CHECKOUT)}
    words = [paths.get(word, word) for word in line.split()]
    offline = ["--quiet", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", *words, *offline], check=True)
    (made,) = tmp_path.iterdir()
    assert fnmatch(made.name, pattern)


def test_compose_gives_the_image_and_the_settings_to_the_server_and_every_worker():
    yaml = pytest.importorskip("yaml")
    (block,) = blocks("cvat", "yaml", "compose")
    services = yaml.safe_load(block.text)["services"]
    assert {"cvat_server", "cvat_utils"} < set(services)
    assert all(name.startswith("cvat_") for name in services)
    for service in services.values():
        assert service["image"] == "cvat-guarded:${CVAT_VERSION:-v2.11.2}"
        assert service["environment"] == {
            "DJANGO_SETTINGS_MODULE": "${CVAT_SETTINGS:-guarded}",
            "CVAT_POSTGRES_USER": "${CVAT_POSTGRES_USER:-root}",
        }
    assert [name for name, service in services.items() if "build" in service] == ["cvat_server"]
    text = (HOW_TO / "cvat.md").read_text(encoding="utf-8")
    assert "`docker-compose.guarded.yml`" in text
    assert "`guarded/Dockerfile`" in text
    assert services["cvat_server"]["build"]["context"] == "./guarded"
    for line in lines("cvat", "sh", "compose"):
        for name in re.findall(r"-f (\S+)", line):
            assert name in {"docker-compose.yml", "docker-compose.guarded.yml"}


def test_helm_gives_the_image_and_the_settings_to_the_backend():
    yaml = pytest.importorskip("yaml")
    (block,) = blocks("cvat", "yaml", "helm")
    backend = yaml.safe_load(block.text)["cvat"]["backend"]
    assert set(backend) == {"image", "tag", "additionalEnv"}
    assert backend["additionalEnv"] == [{"name": "DJANGO_SETTINGS_MODULE", "value": "guarded"}]
