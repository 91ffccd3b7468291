"""``manage.py conn_report``: turns arguments into values, looks, and prints the snapshots."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError, CommandParser

from conn_guard.management import arguments, filters
from conn_guard.management.findings import findings
from conn_guard.management.streams import (
    output_path,
    reader_may_leave,
    stopped_by_signals,
    write_file,
)
from conn_guard.sessions.groups import DEFAULT_BY, Field, Snapshot
from conn_guard.sessions.look import Observer, look_at_all
from conn_guard.sessions.meaning import IDLE_REAPER, Meaning, meanings
from conn_guard.sessions.render.html import render_html
from conn_guard.sessions.render.metrics import render_metrics
from conn_guard.sessions.render.report_json import render_report_json
from conn_guard.sessions.render.report_text import render_report
from conn_guard.sessions.report import Exit, Report
from conn_guard.sessions.stop import Stop
from conn_guard.text import one_line

if TYPE_CHECKING:
    from conn_guard.management.watch_view import WatchApp

WATCHED_EVERY = "2s"


class Command(arguments.OneLineCommand):
    help = (
        "Shows which applications hold the sessions of the server and how many of them"
        " idle_reaper would end; it signals none. Exit codes: 0 done; 1 unexpected error; 2 usage"
        " or configuration; 3 above --fail-above; 5 no connection."
    )
    idle_reaper = IDLE_REAPER
    """How the commands in a report are typed."""
    _screen: WatchApp | None = None

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options, which filters.policy() and _run() read."""
        filters.add_aliases(
            parser, every="Every PostgreSQL alias, each server, database and role once."
        )
        filters.add_filters(parser)
        add = parser.add_argument
        add(
            "--by",
            action="append",
            choices=[each.value for each in Field],
            metavar="FIELD",
            help=(
                "Group by this field, repeatable: "
                + ", ".join(each.value for each in Field)
                + ". Default: application, user, database and state."
            ),
        )
        add(
            "--format",
            choices=["text", "json", "html", "prometheus"],
            default="text",
            help="Default: text. json prints one object for each alias.",
        )
        add("--output", metavar="PATH", help="Write the report to this file instead of stdout.")
        add(
            "--over",
            metavar="DURATION",
            help="Look twice, this far apart, and tell the growth and when the slots are taken.",
        )
        add(
            "--watch",
            metavar="DURATION",
            nargs="?",
            const=WATCHED_EVERY,
            help=f"Report again and again until SIGINT or SIGTERM. Default: {WATCHED_EVERY}.",
        )
        add(
            "--fail-above",
            metavar="PERCENT",
            help="Exit with 3 if more than this share of the fullest limit's slots is taken.",
        )

    def run(self, options: Mapping[str, Any]) -> None:
        """Report, once or until a signal."""
        try:
            self._run(options)
        except OSError as error:
            message = f"The report can't be written: {one_line(error.strerror or str(error))}"
            raise CommandError(message, returncode=Exit.UNEXPECTED) from None

    def _run(self, options: Mapping[str, Any]) -> None:
        settings = arguments.settings()
        aliases, skipped = arguments.postgres_aliases(
            options["database"], every=options["all_databases"]
        )
        policy = filters.policy(options, settings)
        self._by = tuple(_fields(options["by"])) or DEFAULT_BY
        self._options = options
        self._output = output_path(options["output"], "--output")
        self._fail_above = arguments.percent(options, "fail_above")
        over = arguments.duration(options, "over")
        watched = arguments.duration({"watch": _interval(options["watch"])}, "watch")
        self._refuse(over, watched)
        if options["verbosity"]:
            for alias in skipped:
                self._tell(f"{alias} is no PostgreSQL: skipped")
        if watched is None:
            self.before_login()
        stop = Stop()
        with ExitStack() as stack:
            stack.enter_context(stopped_by_signals(stop))
            observers = [
                stack.enter_context(
                    Observer(
                        alias,
                        policy,
                        pooled=settings.pooler.get(alias) == "session",
                        stop=stop,
                        tell=self._tell if options["verbosity"] else None,
                        in_project=self.reads_project,
                    )
                )
                for alias in aliases
            ]
            if watched is None:
                self._once(observers, stop, over)
            elif self._fills_screen():
                self._fill_screen(observers, stop, watched)
            else:
                self._watch(observers, stop, watched)

    def _refuse(self, over: timedelta | None, watched: timedelta | None) -> None:
        if over and watched:
            raise arguments.wrong("--over: --watch tells the growth by itself.")
        if watched and self._options["format"] in ("html", "prometheus") and not self._output:
            raise arguments.wrong(
                f"--watch: name the file for {self._options['format']} with --output."
            )

    def _once(self, observers: Sequence[Observer], stop: Stop, over: timedelta | None) -> None:
        earlier: dict[str, Snapshot] = {}
        if over:
            earlier = {each.alias: each for each in look_at_all(observers, stop=stop)}
            stop.sleep(over.total_seconds())
        snapshots = self._look(observers, stop)
        if stop.signum is None:
            self._write(snapshots, earlier)
        self._fail(snapshots, stop)

    def _fills_screen(self) -> bool:
        """Return whether stdout is a terminal for a full-screen view, and Textual is installed."""
        options = self._options
        is_terminal = self.stdout.isatty() and sys.stdin is not None and sys.stdin.isatty()
        if not is_terminal or os.environ.get("TERM", "dumb") == "dumb":
            return False
        if options["format"] != "text" or self._output or not options["verbosity"]:
            return False
        if find_spec("textual") is None:
            self._tell("Install conn-guard[watch] for the full-screen view.")
            return False
        return True

    def _fill_screen(self, observers: Sequence[Observer], stop: Stop, every: timedelta) -> None:
        # Only here: Textual takes a fifth of a second to import, and may not be installed.
        from conn_guard.management.watch_view import WatchApp, watch

        self._screen = WatchApp(
            observers,
            lambda: self._look(observers, stop),
            every=every,
            by=self._by,
            command=self.idle_reaper,
            stop=stop,
        )
        try:
            failed = watch(self._screen)
        finally:
            self._screen = None
        if failed is not None:
            stop.signum = None
            self._fail(failed, stop)

    def _watch(self, observers: Sequence[Observer], stop: Stop, every: timedelta) -> None:
        earlier: dict[str, Snapshot] = {}
        told: dict[str, str] = {}
        is_first = True
        while stop.signum is None:
            snapshots = self._look(observers, stop)
            if is_first and any(each.exit_code == Exit.USAGE for each in snapshots):
                self._fail(snapshots, stop)
            if stop.signum is not None:
                return
            for each in snapshots:
                # A server that goes away is told once, and waited for.
                if each.failure is not None and told.get(each.alias) != each.failure:
                    self._tell(each.failure)
                told[each.alias] = each.failure or ""
            if not self._write(snapshots, earlier):
                return
            earlier |= {each.alias: each for each in snapshots if each.failure is None}
            is_first = False
            stop.sleep(every.total_seconds())

    def _look(self, observers: Sequence[Observer], stop: Stop) -> list[Snapshot]:
        return [
            replace(snapshot, findings=findings(snapshot), fail_above=self._fail_above)
            for snapshot in look_at_all(observers, stop=stop)
        ]

    def _write(self, snapshots: Sequence[Snapshot], earlier: Mapping[str, Snapshot]) -> bool:
        """Write *snapshots* and return whether the reader of stdout is still there."""
        looks = [
            (each, meanings(each, earlier.get(each.alias), command=self.idle_reaper))
            for each in snapshots
        ]
        if self._options["verbosity"]:
            for note in (note for each in snapshots for note in each.notes):
                self._tell(note)
        text = self._rendered(looks)
        if self._output:
            if text:  # no text is a failure, which is told elsewhere: keep the earlier report
                write_file(self._output, text)
        elif self._options["verbosity"] and text:
            text = f"\n{text}" if earlier and self._options["format"] == "text" else text
            with reader_may_leave(self.stdout) as reader:
                self.stdout.write(text, ending="")
            return not reader.is_gone
        return True

    def _rendered(self, looks: Sequence[tuple[Snapshot, Sequence[Meaning]]]) -> str:
        form = self._options["format"]
        if form == "html":
            return render_html(looks, by=self._by)
        if form == "prometheus":
            return render_metrics([_metrics(each) for each, _ in looks], now=0, earlier={})
        if form == "json":
            lines = [line for each in looks for line in render_report_json(*each, by=self._by)]
            return "".join(f"{line}\n" for line in lines)
        width = shutil.get_terminal_size().columns if self.stdout.isatty() else None
        texts = [
            "\n".join(
                render_report(
                    snapshot,
                    found,
                    by=self._by,
                    width=None if self._output else width,
                    every_group=self._options["verbosity"] > 1,
                )
            )
            for snapshot, found in looks
            if snapshot.failure is None and snapshot.mirror_of is None
        ]
        return "\n\n".join(texts) + "\n" * bool(texts)

    def _fail(self, snapshots: Sequence[Snapshot], stop: Stop) -> None:
        if stop.signum is not None:
            name = signal.Signals(stop.signum).name
            raise CommandError(f"Stopped by {name}.", returncode=128 + stop.signum)
        faults = sorted(
            (each for each in snapshots if each.exit_code), key=lambda each: each.exit_code
        )
        for each in faults[:-1]:
            self._tell(_fault(each))
        if faults:
            raise CommandError(_fault(faults[-1]), returncode=faults[-1].exit_code)

    def _tell(self, line: str) -> None:
        if self._screen is not None:
            self._screen.tell(line)
            return
        self.stderr.write(one_line(line))
        self.stderr.flush()


def _fields(value: object) -> Iterator[Field]:
    for each in dict.fromkeys(arguments.texts(value)):
        try:
            yield Field(each)
        except ValueError:
            names = ", ".join(field.value for field in Field)
            raise arguments.wrong(f"--by: {each!r} is none of {names}.") from None


def _interval(value: object) -> object:
    # From Python, watch=True is what --watch alone is on the command line.
    return WATCHED_EVERY if value is True else value


def _metrics(snapshot: Snapshot) -> Report:
    """Return a dry run's report, whose metrics are those of the server alone."""
    return Report(
        alias=snapshot.alias,
        dry_run=True,
        slots=snapshot.slots,
        census=snapshot.census,
        hidden=snapshot.hidden,
        mirror_of=snapshot.mirror_of,
    )


def _fault(snapshot: Snapshot) -> str:
    """Return in one line why the exit code of *snapshot* isn't 0."""
    if snapshot.failure is not None or snapshot.slots is None:
        return one_line(snapshot.failure or "")
    slots, bound = snapshot.slots, "" if snapshot.slots.exact else "≤"
    return one_line(
        f"{snapshot.alias}: {bound}{slots.used} of {slots.total} slots"
        f" {'is' if slots.used == 1 else 'are'} taken"
        f" ({bound}{slots.percent:.0f}%), above --fail-above {snapshot.fail_above:g}."
    )
