"""``manage.py leak_lint``: names lines that run querying code which closes no connection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser

from conn_guard import pages
from conn_guard.lint.findings import Finding, Report, find
from conn_guard.management import arguments
from conn_guard.management.streams import reader_may_leave
from conn_guard.text import one_line, printable

FINDINGS = 3
"""The exit code if a line is named."""


class Command(arguments.OneLineCommand):
    help = (
        "Names the lines where a thread, an executor or a task runs code that queries and closes"
        " no connection. It reads the files and imports none of them. Exit codes: 0 no such line;"
        " 1 unexpected error; 2 usage; 3 at least one line."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the paths and the format."""
        parser.add_argument(
            "paths", nargs="*", metavar="PATH", help="A file or a folder. Default: this folder."
        )
        parser.add_argument(
            "--format",
            choices=["text", "json"],
            default="text",
            help="Default: text. json prints one object on each line.",
        )

    def run(self, options: Mapping[str, Any]) -> None:
        """Print the findings; raise CommandError with exit code 3 if there is one."""
        paths = _paths(options["paths"] or ["."])
        report = find(paths)
        if not report.files:
            named = ", ".join(map(str, paths))
            raise arguments.wrong(f"{named}: there is no Python file. Name another path.")
        lines = _json(report) if options["format"] == "json" else _text(report)
        for path, why in sorted(report.unreadable.items()):
            self.stderr.write(one_line(f"{path}: can't be read and was left out: {why}"))
        with reader_may_leave(self.stdout):
            for line in lines:
                self.stdout.write(line)
        if report.findings:
            raise CommandError(
                "Threads or tasks query and close no connection. See"
                f" {pages.address('reference/leak_lint.md')}",
                returncode=FINDINGS,
            )


def _paths(given: list[str]) -> list[Path]:
    paths = [Path(each) for each in given]
    for path in paths:
        if not path.exists():
            raise arguments.wrong(f"There is no {str(path)!r}. Name a file or a folder.")
    return paths


def _text(report: Report) -> list[str]:
    findings = _counted(len(report.findings), "finding")
    return [
        *map(_line, report.findings),
        f"{findings} in {_counted(report.files, 'Python file')}",
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _line(finding: Finding) -> str:
    place = f"{finding.path}:{finding.line}:{finding.column}"
    return printable(f"{place}: {finding.slug}: {finding.message} {finding.hint}")


def _json(report: Report) -> list[str]:
    summary = {
        "event": "summary",
        "files": report.files,
        "findings": len(report.findings),
        "unreadable": sorted(report.unreadable),
        "exit": FINDINGS if report.findings else 0,
    }
    events = [{"event": "finding", **asdict(each)} for each in report.findings]
    return [json.dumps(each) for each in (*events, summary)]
