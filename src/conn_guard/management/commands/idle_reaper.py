"""``manage.py idle_reaper``: this room holds the door to the reaper, arguments in and report out."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from conn_guard import conf
from conn_guard.policy import Policy
from conn_guard.reaper import Orders, Reaper, Stop
from conn_guard.reports import Exit, Report, one_line, render_json, render_line, render_table


class Command(BaseCommand):
    help = (
        "Terminates the sessions of the alias's own role and database that have been idle for REAP_IDLE_FOR (10 minutes) "
        "or longer. --dry-run shows them first."
    )
    requires_system_checks: list[str] = []  # noqa: RUF012  (Django's own spelling)

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.__class__ = _Parser
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--database",
            action="append",
            metavar="ALIAS",
            help="Reaps for this alias of DATABASES; may be repeated. The default is 'default'.",
        )
        parser.add_argument(
            "--idle-for",
            type=_duration,
            metavar="DURATION",
            help="How long a session must have been idle: 90s, 10m, 2h. The default is CONN_GUARD['REAP_IDLE_FOR'].",
        )
        parser.add_argument(
            "--application-name",
            action="append",
            default=[],
            metavar="GLOB",
            help="Only sessions whose application_name matches; may be repeated.",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="Shows the same decisions and signals nobody.",
        )
        parser.add_argument("--format", choices=["text", "json"], default="text", help="The default is text.")

    def handle(self, *args: Any, **options: Any) -> None:
        settings = _settings()
        policy = Policy(
            idle_for=options["idle_for"] or settings.reap_idle_for,
            idle_in_transaction_for=settings.reap_idle_in_transaction_for,
            applications=tuple(options["application_name"]),
            protected_applications=settings.protected_applications,
        )
        stop = Stop()
        failures: list[Report] = []
        with _stopping(stop):
            for alias in _aliases(options["database"]):
                orders = Orders(dry_run=options["dry_run"], pooled=settings.pooler.get(alias) == "session")
                with Reaper(alias, policy, orders, stop=stop) as reaper:
                    report = reaper.reap()
                self._print(report, options["format"], options["verbosity"])
                if report.exit_code:
                    failures.append(report)
        if failures:
            worst = max(failures, key=lambda each: each.exit_code)
            raise CommandError(_words(worst), returncode=int(worst.exit_code))

    def _print(self, report: Report, form: str, verbosity: int) -> None:
        if verbosity == 0:
            return
        for note in report.notes:
            self.stderr.write(one_line(note))
        if form == "json":
            lines = render_json(report)
        elif report.failure and not report.acted_on:
            lines = []
        else:
            lines = [*render_table(report.outcomes if verbosity > 1 else report.acted_on), render_line(report)]
        for line in lines:
            self.stdout.write(line)


class _Parser(CommandParser):
    """Django's parser that says what is wrong in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        if self.called_from_command_line:
            self.exit(Exit.USAGE, f"CommandError: {one_line(message)}\n")
        raise CommandError(one_line(message), returncode=Exit.USAGE)


def _settings() -> conf.Settings:
    problems = conf.problems()
    if problems:
        words = " ".join(f"{problem.message} {problem.hint}" for problem in problems)
        raise CommandError(one_line(words), returncode=Exit.USAGE)
    return conf.current()


def _aliases(named: list[str] | None) -> list[str]:
    for alias in named or []:
        if alias not in connections.settings:
            known = ", ".join(repr(each) for each in connections.settings)
            raise CommandError(f"There is no alias {alias!r} in DATABASES: it has {known}.", returncode=Exit.USAGE)
        if connections[alias].vendor != "postgresql":
            raise CommandError(f"Alias {alias!r} is no PostgreSQL: idle_reaper has nothing to do there.", returncode=Exit.USAGE)
    return list(dict.fromkeys(named or ["default"]))


def _words(report: Report) -> str:
    if report.interrupted_by is not None:
        return f"{report.alias}: stopped by {signal.Signals(report.interrupted_by).name}."
    if report.failure is not None:
        return one_line(report.failure)
    return f"{report.alias}: {report.failed} signals failed, {report.survivors} sessions survived."


@contextmanager
def _stopping(stop: Stop) -> Iterator[None]:
    """Let SIGTERM and SIGINT ask *stop*; a second one acts as it would have without us."""
    earlier: dict[int, Any] = {}

    def ask(signum: int, frame: object) -> None:
        stop.signum = signum
        signal.signal(signum, earlier[signum])

    try:
        for asked in (signal.SIGTERM, signal.SIGINT):
            earlier[asked] = signal.signal(asked, ask)
    except ValueError:
        pass  # only the main thread hears signals, and call_command may run in any
    try:
        yield
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)


def _duration(text: str) -> timedelta:
    try:
        duration = conf.parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not duration:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration above zero.")
    return duration
