"""``manage.py idle_reaper``: turns arguments into values, reaps, and prints the reports."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser

from conn_guard.checks import reaping_messages
from conn_guard.conf import Settings
from conn_guard.management import arguments, filters
from conn_guard.management.streams import (
    output_path,
    reader_may_leave,
    stopped_by_signals,
    write_file,
)
from conn_guard.sessions.parallel import MOST_JOBS
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.reaper import Reaper, RunOptions, reap_all
from conn_guard.sessions.render.advice import render_advice, render_procedure
from conn_guard.sessions.render.json import render_json
from conn_guard.sessions.render.metrics import metrics_after
from conn_guard.sessions.render.text import render_bar, render_failure, render_line, render_table
from conn_guard.sessions.report import Exit, Report, RunError
from conn_guard.sessions.stop import Stop
from conn_guard.text import duration, one_line

RISKY_BELOW = timedelta(seconds=30)
"""A shorter threshold ends sessions that a healthy application is about to use."""
BAR_ABOVE = 100
"""A progress bar is drawn for more signals than this."""
MOST_SPREAD = timedelta(seconds=30)
"""With --every, a later round begins with each alias at its own moment of half the interval."""


class Command(arguments.OneLineCommand):
    help = (
        "Terminates the sessions of the alias's own role and database that have been idle for"
        " CONN_GUARD['REAP_IDLE_FOR'] (10 minutes) or longer; --dry-run shows them and signals"
        " none. Exit codes: 0 done; 1 unexpected error; 2 usage or configuration; 3 a signal"
        " failed or a session survived; 4 sessions of the scope are hidden; 5 no connection."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options, which filters.policy(), _run_options() and _run() read."""
        filters.add_aliases(
            parser, every="Every PostgreSQL alias, each server, database and role once."
        )
        filters.add_filters(parser)
        add = parser.add_argument
        add("--max", metavar="N", help="Signal at most N sessions a run, the longest idle first.")
        add(
            "--when-above",
            metavar="PERCENT",
            help="Signal sessions only while more than this share of the usable slots is taken.",
        )
        add("--dry-run", action="store_true", help="Show the same decisions and signal no session.")
        add(
            "--format",
            choices=["text", "json"],
            default="text",
            help="Default: text. json prints one object on each line.",
        )
        add(
            "--metrics-file",
            metavar="PATH",
            help="Write metrics for Prometheus' textfile collector.",
        )
        add(
            "--wait",
            metavar="DURATION",
            default="5s",
            help="How long signalled sessions may take to end. Default: 5s.",
        )
        add(
            "--connect-for",
            metavar="DURATION",
            help="How long a login that fails is tried again, for each alias. Default: 30s.",
        )
        add(
            "--jobs",
            metavar="N",
            help=f"Reap up to N aliases at the same time. Default: {MOST_JOBS}.",
        )
        add(
            "--every",
            metavar="DURATION",
            help="Repeat until SIGTERM, on one session that is kept open.",
        )
        add(
            "--advise",
            action="store_true",
            help="Print the SQL by which the server does this itself, and signal no session.",
        )

    def run(self, options: Mapping[str, Any]) -> None:
        """Reap, once or until a signal."""
        settings = arguments.settings()
        aliases, skipped = arguments.postgres_aliases(
            options["database"], every=options["all_databases"]
        )
        policy = filters.policy(options, settings)
        every = arguments.duration(options, "every")
        self._at_most = arguments.number(options, "max")
        self._jobs = arguments.number(options, "jobs", least=1)
        metrics = output_path(options["metrics_file"], "--metrics-file")
        self._noted: set[str] = set()
        self._stderr_lock = threading.Lock()
        stop = Stop()
        reapers = [
            Reaper(
                alias,
                policy,
                self._run_options(options, settings, alias),
                stop=stop,
                # Several aliases would draw their bars over one another.
                progress=self._progress if len(aliases) == 1 else None,
                tell=self._tell if options["verbosity"] else None,
            )
            for alias in aliases
        ]
        if options["verbosity"]:
            for line in (
                *(f"{alias} is no PostgreSQL: skipped" for alias in skipped),
                *_warnings(policy, aliases),
            ):
                self._tell(line)
        if every is None:
            self.before_login()
        with ExitStack() as stack:
            stack.enter_context(stopped_by_signals(stop))
            for reaper in reapers:
                stack.enter_context(reaper)
            if options["advise"]:
                self._advise(reapers, stop)
                return
            self._rounds(reapers, options, stop, every, metrics)

    def _advise(self, reapers: Sequence[Reaper], stop: Stop) -> None:
        faults: list[tuple[int, str]] = []
        for reaper in reapers:
            if stop.signum is not None:
                break
            try:
                policy, session = reaper.scope(), reaper.server().session
            except RunError as error:
                faults.append((error.exit_code, str(error)))
                continue
            procedure = render_procedure(policy, version_num=session.version_num)
            with reader_may_leave(self.stdout):
                self.stdout.write("\n".join([*render_advice(policy), "", *procedure]))
        if stop.signum is not None:
            name = signal.Signals(stop.signum).name
            faults = [(128 + stop.signum, f"Stopped by {name}.")]
        self._fail(sorted(faults))

    def _fail(self, faults: Sequence[tuple[int, str]]) -> None:
        """Tell *faults*, an exit code and a line each, and raise the last; none is no failure."""
        for _, line in faults[:-1]:
            self._tell(line)
        if faults:
            code, line = faults[-1]
            raise CommandError(one_line(line), returncode=code)

    def _run_options(
        self, options: Mapping[str, Any], settings: Settings, alias: str
    ) -> RunOptions:
        return RunOptions(
            dry_run=options["dry_run"],
            wait=arguments.duration(options, "wait", zero=True) or timedelta(0),
            when_above=arguments.percent(options, "when_above"),
            pooled=settings.pooler.get(alias) == "session",
            repeats=options["every"] is not None,
            connect_for=arguments.duration(options, "connect_for"),
            skips_standbys=options["all_databases"],
            in_project=self.reads_project,
        )

    def _rounds(
        self,
        reapers: Sequence[Reaper],
        options: Mapping[str, Any],
        stop: Stop,
        every: timedelta | None,
        metrics: Path | None,
    ) -> None:
        is_first = True
        spread = timedelta(0)
        while True:
            began = time.monotonic()
            reports = []
            for report in reap_all(
                reapers, stop=stop, at_most=self._at_most, jobs=self._jobs, spread=spread
            ):
                self._print(report, options)
                reports.append(report)
            if metrics and len(reports) == len(reapers):  # a run cut short keeps the earlier file
                self._write(metrics, reports, is_last=every is None)
            faults = [
                (each.exit_code, render_failure(each))
                for each in sorted(reports, key=lambda each: each.exit_code)
                if each.exit_code
            ]
            if every is None and stop.signum is not None and len(reports) < len(reapers):
                faults.append((128 + stop.signum, _cut_short(stop.signum, reapers, reports)))
            is_final = is_first and any(code in (Exit.USAGE, Exit.BLIND) for code, _ in faults)
            if every is None or is_final:
                self._fail(faults)
            for _, line in faults:
                self._tell(line)
            if every is None:
                return
            is_first = False
            spread = min(every / 2, MOST_SPREAD)
            stop.sleep(every.total_seconds() - (time.monotonic() - began))
            if stop.signum is not None:
                return

    def _write(self, metrics: Path, reports: Sequence[Report], *, is_last: bool) -> None:
        try:
            write_file(metrics, metrics_after(metrics, reports))
        except OSError as error:
            if is_last:
                raise
            self.stderr.write(one_line(f"--metrics-file: {error}"))

    def _print(self, report: Report, options: Mapping[str, Any]) -> None:
        if not options["verbosity"]:
            return
        for note in report.notes:
            if note not in self._noted:  # with --every, a note is written once
                self._tell(note)
                self._noted.add(note)
        if report.is_left_out:
            return
        # The run goes on without its reader: the sessions of other aliases are still to be ended.
        with reader_may_leave(self.stdout):
            self._write_report(report, options)

    def _write_report(self, report: Report, options: Mapping[str, Any]) -> None:
        if options["format"] == "json":
            self.stdout.write("\n".join(render_json(report)))
        elif report.failure is None or report.acted_on:
            is_painted = self.stdout.isatty() or options["force_color"]
            paint = (
                (self.style.ERROR if report.exit_code else self.style.SUCCESS)
                if is_painted
                else str
            )
            for line in render_table(
                report.outcomes if options["verbosity"] > 1 else report.acted_on
            ):
                self.stdout.write(line)
            self.stdout.write(render_line(report), paint)

    def _tell(self, line: str) -> None:
        with self._stderr_lock:  # the threads of several aliases tell of their logins
            self.stderr.write(one_line(line))
            self.stderr.flush()

    def _progress(self, done: int, due: int) -> None:
        if due > BAR_ABOVE and self.stderr.isatty():
            self.stderr.write(f"\r{render_bar(done, due)}", ending="" if done < due else "\r\x1b[K")
            self.stderr.flush()


def _cut_short(signum: int, reapers: Sequence[Reaper], reports: Sequence[Report]) -> str:
    left = len(reapers) - len(reports)
    name = signal.Signals(signum).name
    return f"Stopped by {name}: {left} of {len(reapers)} aliases were not reaped."


def _warnings(policy: Policy, aliases: Sequence[str]) -> Iterator[str]:
    if policy.idle_for < RISKY_BELOW:
        yield (
            f"The threshold is {duration(policy.idle_for.total_seconds())}: below 30s a session may"
            " be ended in the pause between two requests."
        )
    for message in reaping_messages(aliases):
        yield f"{message.id}: {message.msg} {message.hint}"
