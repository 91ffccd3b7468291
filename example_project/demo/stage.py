"""The stage of the demo: PostgreSQL, a database of the demo's own, and uvicorn."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import environ
import httpx
from django.core.management.base import CommandError
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import ConnectionHandler

from tools.local_postgres import LocalPostgres, LocalPostgresError

PROJECT = Path(__file__).resolve().parent.parent
MAX_CONNECTIONS = 40
FEWEST_SLOTS = 20
STARTS_WITHIN_SECONDS = 30
ENDS_WITHIN_SECONDS = 10

# PostgreSQL reserves slots for superusers and, from 16 on, for roles that the administrator names.
ABOUT_SERVER = """
SELECT current_setting('max_connections')::int
       - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true), '0')::int,
       (SELECT count(*) FROM pg_stat_activity
        WHERE backend_type = 'client backend' OR backend_type IS NULL),
       split_part(current_setting('server_version'), ' ', 1)
"""

# The shell ends the program when its own input ends, so that nothing is left when the demo itself
# is killed with -9.
LEASH = (
    'exec 3<&0; "$@" </dev/null 3<&- & program=$!; (cat <&3; kill $program 2>/dev/null) & wait'
    " $program"
)


@contextmanager
def leashed(command: list[str], log: Path, **settings: object) -> Iterator[subprocess.Popen]:
    """Run a program that ends with the block, or with this process; its output goes to *log*.

    *settings* are those of subprocess.Popen.
    """
    with log.open("wb") as output:
        # In a session of its own the program gets no Ctrl-C: the demo ends it.
        process = subprocess.Popen(
            ["/bin/sh", "-c", LEASH, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **settings,
        )
    try:
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(ENDS_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def connect(url: str, application_name: str) -> BaseDatabaseWrapper:
    """Return a connection of the calling thread to *url* that is no alias of the project's."""
    settings = environ.Env.db_url_config(url)
    settings["OPTIONS"] = {**settings.get("OPTIONS", {}), "application_name": application_name}
    return ConnectionHandler({"default": settings})["default"]


@dataclass(frozen=True)
class Stage:
    """A PostgreSQL with a role and a database for the example; *slots* sessions fit in."""

    operator_url: str
    role: str
    slots: int
    postgres: str
    """The server's version."""
    folder: Path
    environment: dict[str, str]

    def manage(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the example, as an operator would."""
        command = [sys.executable, "manage.py", *arguments]
        settings = {**self.environment, **environment}
        return subprocess.run(
            command, cwd=PROJECT, env=settings, capture_output=True, text=True, check=False
        )

    @contextmanager
    def serve(self, guard: str) -> Iterator[httpx.Request]:
        """Run the example under uvicorn with the parts of conn_guard that *guard* names.

        Gives a request with the server's address and the header that authenticates.
        """
        log = self.folder / f"uvicorn-{guard}.log"
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "example.asgi:application",
            "--port",
            "0",
            "--no-access-log",
        ]
        command += ["--timeout-graceful-shutdown", "2"]
        environment = {**self.environment, "EXAMPLE_GUARD": guard}
        with leashed(command, log, cwd=PROJECT, env=environment) as process:
            address = _address(process, log)
            who = {"username": "annotator", "password": self.environment["SEED_PASSWORD"]}
            answer = httpx.post(f"{address}/api/login", json=who, timeout=30).raise_for_status()
            yield httpx.Request(
                "GET", address, headers={"Authorization": f"Token {answer.json()['token']}"}
            )

    def log_of(self, guard: str) -> str:
        """Return what the server that ran with *guard* has logged so far."""
        return (self.folder / f"uvicorn-{guard}.log").read_text(errors="replace")


@contextmanager
def set_stage() -> Iterator[Stage]:
    """Give a stage on DATABASE_URL's server, or on one of its own; remove it afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="conn_guard-demo-")))
        url = os.environ.get("DATABASE_URL", "")
        is_ours = not url
        if is_ours:
            try:
                url = stack.enter_context(LocalPostgres(max_connections=MAX_CONNECTIONS)).url()
            except LocalPostgresError as error:
                raise CommandError(str(error), returncode=2) from None
        elif not urlsplit(url).scheme.startswith("postg"):
            raise CommandError(
                "DATABASE_URL is no PostgreSQL's; unset it, and the demo starts one of its own.",
                returncode=2,
            )
        operator = connect(url, "example:operator")
        stack.callback(operator.close)
        try:
            with operator.cursor() as cursor:
                cursor.execute(ABOUT_SERVER)
                slots, used, version = cursor.fetchone()
                # This session ends, and the meter's takes its slot. On the user's server the demo
                # takes no more slots than on its own, and leaves some free.
                slots -= used
                if not is_ours:
                    slots = min(MAX_CONNECTIONS - 4, slots - 5)
                if slots < FEWEST_SLOTS:
                    reason = (
                        f"The demo needs {FEWEST_SLOTS} free slots, and DATABASE_URL's server has"
                        f" {slots} to spare."
                    )
                    raise CommandError(reason, returncode=2)
                name, password = _make_database(
                    stack, operator, limit=-1 if is_ours else slots, is_ours=is_ours
                )
            operator.close()
        except Error as error:
            reason = " ".join(str(error).split())
            raise CommandError(
                "The demo makes a role and a database of its own on DATABASE_URL's server, and it"
                f" refused: {reason}",
                returncode=2,
            ) from None
        stage = Stage(
            operator_url=url,
            role=name,
            slots=slots,
            postgres=version,
            folder=folder,
            environment={
                # The caller may set this one and others, but not those below os.environ: the demo
                # relies on them.
                "SENDFILE_BACKEND": "nginx",
                **os.environ,
                "DATABASE_URL": _with(url, database=name, account=f"{name}:{password}"),
                "OPERATOR_DATABASE_URL": _with(url, database=name),
                "DJANGO_SETTINGS_MODULE": "example.settings",
                "EXAMPLE_GUARD": "app",
                "APPLICATION_NAME": "example:server",
                "ALLOWED_HOSTS": "127.0.0.1",
                "DEBUG": "false",
                "MEDIA_ROOT": str(folder / "media"),
                "SECRET_KEY": secrets.token_urlsafe(40),
                "SEED_PASSWORD": secrets.token_urlsafe(12),
                "PYTHONUNBUFFERED": "1",
            },
        )
        for command in ("migrate", "seed"):
            done = stage.manage(command, "-v0", APPLICATION_NAME="example:worker")
            if done.returncode:
                raise CommandError(
                    f"manage.py {command} failed: {done.stderr.strip()}", returncode=2
                )
        yield stage


def _make_database(
    stack: ExitStack, operator: BaseDatabaseWrapper, *, limit: int, is_ours: bool
) -> tuple[str, str]:
    name = "example" if is_ours else f"conn_guard_demo_{secrets.token_hex(3)}"
    password = secrets.token_hex(12)

    def execute(statement: str) -> None:
        with operator.cursor() as cursor:
            cursor.execute(statement)

    execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' CONNECTION LIMIT {limit}")
    if not is_ours:
        stack.callback(execute, f"DROP ROLE {name}")
        # The creator of a role is not yet its member, and only a member may give it a database and
        # end its sessions.
        execute(f"GRANT {name} TO CURRENT_USER")
    execute(f"CREATE DATABASE {name} OWNER {name}")
    if not is_ours:
        stack.callback(execute, f"DROP DATABASE {name} WITH (FORCE)")
    return name, password


def _with(url: str, *, database: str, account: str = "") -> str:
    """Return *url* with another database, and with another account where one is given."""
    parts = urlsplit(url)
    own, _, place = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{account or own}@{place}", path=f"/{database}").geturl()


def _address(process: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + STARTS_WITHIN_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"running on (http://\S+)", log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.05)
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise CommandError(f"uvicorn did not start: {lines[-1]}", returncode=2)
