"""`manage.py demo`: the leak, its end and its cure, on a real PostgreSQL and a real uvicorn."""

import os
import signal
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.live import Live
from rich.text import Text

from demo import chart
from demo import picture as drawing
from demo import report as page
from demo.acts import Play
from demo.meter import Meter
from demo.stage import set_stage

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Command(BaseCommand):
    help = (
        "Shows CVAT's leak of connections, ends it with idle_reaper and cures it with conn_guard,"
        " on a PostgreSQL of its own or on DATABASE_URL's, where it makes a role and a database and"
        " drops them. Exits with 1 when that did not come out."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--times",
            type=_number,
            default=10,
            help="How many times the requests of act 1 the acts 3a and 3b send: 10.",
        )
        parser.add_argument(
            "--report",
            type=Path,
            default=Path("demo-report.html"),
            help="Where the page is written: demo-report.html.",
        )
        parser.add_argument(
            "--picture",
            type=Path,
            help="Where the chart is written as an SVG file: nowhere unless it is given.",
        )

    def handle(self, **options: Any) -> None:
        if not os.access(options["report"].parent, os.W_OK):
            raise CommandError(
                f"--report: {options['report']} can't be written; name a file in a folder that"
                " can.",
                returncode=2,
            )
        began = time.monotonic()
        console = Console(highlight=False)
        # A program or a log that reads the output has no right margin.
        console.soft_wrap = not console.is_terminal
        try:
            with _stoppable():
                faults = self._play(
                    console, options["times"], options["report"], options["picture"]
                )
        except SystemExit:
            console.print("Stopped: everything that was started is gone.")
            raise
        console.print(
            f"\n{time.monotonic() - began:.0f} seconds; the chart is in {options['report']}",
            style="dim",
        )
        if faults:
            raise CommandError("\n".join(faults), returncode=1)

    def _play(self, console: Console, times: int, report: Path, picture: Path | None) -> list[str]:
        def say(line: str) -> None:
            if line.startswith("act "):
                console.print()
            console.print(Text(line, "bold" if line.startswith("act ") else ""))

        console.print("Setting the stage: PostgreSQL, a database, seed data …", style="dim")
        with set_stage() as stage, Meter(stage) as meter:
            play = Play(stage, meter, times=times, say=say)
            console.print(
                f"PostgreSQL {stage.postgres} with {stage.slots} slots for the application."
            )
            with _watched(console, play):
                faults = play.run()
            report.write_text(page.render(play, faults), encoding="utf-8")
            if picture:
                drawing.write(play, picture)
            return faults


@contextmanager
def _watched(console: Console, play: Play) -> Iterator[None]:
    """Show the play while it runs, live in a terminal and as lines elsewhere; then its figures."""
    screen = chart.Screen(play)
    if console.is_terminal:
        with Live(screen, console=console, refresh_per_second=8, vertical_overflow="crop"):
            yield
        return
    ended = threading.Event()
    teller = threading.Thread(target=_tell, args=(console, play, ended), daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
    console.print()
    console.print(screen, soft_wrap=False)


def _tell(console: Console, play: Play, ended: threading.Event) -> None:
    while not ended.wait(2):
        play.watch()
        if (act := play.now_playing) and act.readings:
            used = act.readings[-1].used
            console.print(
                f"  {act.requests} requests, {act.errors} errors, {used} of {play.stage.slots}"
                " slots"
            )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and a closed terminal into SystemExit, so that everything is removed."""

    def stop(number: int, _: object) -> None:
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    earlier = {each: signal.signal(each, stop) for each in STOPS}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number of times: write 1 or more.")
    return int(text)
