"""``conn-guard`` and ``python -m conn_guard``: the commands on a machine without a project."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from django.conf import settings
from django.core.management import load_command_class

from conn_guard import __version__
from conn_guard.management.arguments import OneLineParser
from conn_guard.management.dsn import DSNError, alias_settings, holds_password
from conn_guard.text import one_line

USAGE = """\
usage: conn-guard [--dsn DSN] COMMAND [OPTION...]

  report   show which applications hold the sessions of a server, as conn_report does
  reap     end sessions that have been idle for too long, as idle_reaper does
  advise   print the SQL by which the server does this itself
  check    check the server's settings and the role, as manage.py check --deploy does;
           check ID explains the check of that id, such as E101, and needs no server
  probe    find the URL that leaks, as leak_probe does
  lint     name the lines of code that leak, as leak_lint does; it needs no server

The server is the one of --dsn, of DATABASE_URL, or of libpq's PG* variables and service files.
A DSN is postgresql://USER@HOST:PORT/DATABASE or host=HOST dbname=DATABASE.
conn-guard COMMAND --help shows the options.
"""
COMMANDS = {
    "report": ("conn_report", []),
    "reap": ("idle_reaper", []),
    "advise": ("idle_reaper", ["--advise"]),
    "check": ("check", ["--database", "default", "--deploy", "--tag", "database"]),
    "probe": ("leak_probe", []),
    "lint": ("leak_lint", []),
}
# The parser's message would show the argument, and the password in it.
_DSN = re.compile(r"[a-z+]+://|.*\bpassword\s*=", re.IGNORECASE)
_ADDRESSES = ("DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE")
USAGE_ERROR = 2
UNREACHABLE = 5
"""The exit codes of conn_guard.sessions.report.Exit, which loads what a mistake doesn't need."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that *arguments* name; exits with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = OneLineParser(
        prog="conn-guard", add_help=False, allow_abbrev=False, called_from_command_line=True
    )
    for option in ("--dsn", "--settings", "--pythonpath"):
        parser.add_argument(option)
    known, rest = parser.parse_known_args(given)
    name, options = (rest[0] if rest else ""), rest[1:]
    if name in ("help", "-h", "--help"):
        sys.stdout.write(USAGE)
        return
    if name == "--version":
        sys.stdout.write(f"conn-guard {__version__}\n")
        return
    if name != "probe" and any(map(_DSN.match, rest)):
        _fail("A DSN is given by --dsn.")
    if name not in COMMANDS:
        said = f"There is no command {name!r}" if name else "A command is missing"
        _fail(f"{said}. Name one of {', '.join(COMMANDS)}.")
    command, more = COMMANDS[name]
    if known.settings or known.pythonpath:
        _fail(f"conn-guard reads no project. Run manage.py {command} in the project.")
    if name == "check" and options and not options[0].startswith("-"):
        _explain(options)
        return
    if name != "lint":
        _configure(known.dsn, os.environ)
    elif known.dsn is not None:
        _fail("lint reads files and no server. Leave --dsn out.")
    to_run = _command(command)
    is_unnamed = known.dsn is None and not any(map(os.environ.get, _ADDRESSES))
    if is_unnamed:
        to_run.before_login = partial(_refuse_no_server, name)
    if name == "check" and not {"-h", "--help"}.intersection(options):
        if is_unnamed:
            _refuse_no_server(name)
        _refuse_silence()
    to_run.run_from_argv(["conn-guard", name, *more, *options])


def _configure(dsn: str | None, environ: Mapping[str, str]) -> None:
    """Make a project of one alias, whose settings come from *dsn* or *environ*."""
    source = "--dsn" if dsn is not None else "DATABASE_URL"
    read = environ.get("DATABASE_URL", "") if dsn is None else dsn
    try:
        alias = alias_settings(read, environ)
        if dsn is not None and holds_password(dsn):
            sys.stderr.write(
                "--dsn holds a password, which each user of this machine can see in the list of"
                " processes. Give it by DATABASE_URL, PGPASSWORD or ~/.pgpass.\n"
            )
    except DSNError as error:
        _fail(f"{source}: {error}")
    except ImportError as error:
        _fail(str(error))
    settings.configure(
        DATABASES={"default": alias},
        INSTALLED_APPS=["conn_guard"],
        CONN_GUARD={"CHECK_AT_STARTUP": None},
        USE_TZ=True,
    )
    import django

    django.setup()


def _command(name: str) -> Any:
    """Return the command *name*, which shows commands as they are typed here."""
    command: Any = load_command_class("django.core" if name == "check" else "conn_guard", name)
    command.idle_reaper = "conn-guard reap"
    command.reads_project = False
    return command


def _refuse_no_server(name: str) -> None:
    """End with exit code 5 if no server answers where libpq looks without an address."""
    try:
        from psycopg import pq
    except ImportError:  # psycopg2 can't ask: the command tries to log in for a while
        return
    if pq.PGconn.ping(b"connect_timeout=2") == pq.Ping.NO_RESPONSE:
        _fail(
            "No server is named, and none answers on this machine. Name one: conn-guard"
            f" {name} --dsn postgresql://USER@HOST:PORT/DATABASE, or set DATABASE_URL or PGHOST.",
            UNREACHABLE,
        )


def _explain(ids: Sequence[str]) -> None:
    """Print the paragraphs about the checks *ids*."""
    from conn_guard.checks.page import explain

    try:
        sys.stdout.write("\n".join(map(explain, ids)))
    except LookupError as error:
        _fail(str(error.args[0]))


def _refuse_silence() -> None:
    """End with exit code 5 if the server can't be asked; Django's check would pass."""
    from conn_guard.checks.facts import NoAnswer, ask
    from conn_guard.checks.project import Project
    from conn_guard.sessions.login import error_text

    answer = ask(Project.current().aliases[0])
    if isinstance(answer, NoAnswer):
        said = error_text(answer.error, "default")
        _fail(f"default: can't connect: {said}", UNREACHABLE)


def _fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    sys.stderr.write(f"CommandError: {one_line(message)}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
