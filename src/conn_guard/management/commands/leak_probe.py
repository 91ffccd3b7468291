"""``manage.py leak_probe``: turns arguments into values, probes, and prints the reports."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings as project
from django.core.management.base import CommandError, CommandParser
from django.db import connections

from conn_guard.management import arguments
from conn_guard.management.streams import reader_may_leave, stopped_by_signals
from conn_guard.probe import (
    LostProbeError,
    Mode,
    Options,
    Target,
    TargetError,
    UrlReport,
    Verdict,
    probe_urls,
)
from conn_guard.probe.render import (
    CURE_WITHOUT_PROJECT,
    cure,
    render_error,
    render_probe_json,
    render_progress,
    render_reports,
    sentence,
)
from conn_guard.probe.targets import SAFE_METHODS, read_list, target
from conn_guard.probe.verdict import LEAKS_EXIT, exit_code
from conn_guard.sessions.report import Exit, RunError
from conn_guard.sessions.stop import Stop
from conn_guard.text import one_line, shown

# Source: RFC 9110, section 5.6.2, a token.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Command(arguments.OneLineCommand):
    help = (
        "Puts load on each URL and tells which of them leaks sessions of the database server. Only"
        " URLs of this machine are probed, unless --i-own-this-host is given. Exit codes: 0 clean;"
        " 1 unexpected error; 2 usage or configuration; 3 a URL leaks; 4 unclear, and no URL"
        " leaks; 5 no connection to the database or to a URL."
    )
    reads_project = True
    """Whether the settings are those of a project, and not the ones that conn-guard makes."""

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the URLs and the options."""
        add = parser.add_argument
        default = Options()
        add("urls", nargs="*", metavar="URL", help="A URL such as http://127.0.0.1:8000/path/.")
        add(
            "--urls",
            dest="list",
            metavar="FILE",
            help="Probe the URLs of this file, too: one a line, or a browser's HAR file.",
        )
        add(
            "--requests",
            metavar="N",
            default=default.requests,
            help=f"The requests of a round; each URL has two. Default: {default.requests}.",
        )
        add(
            "--concurrency",
            metavar="N",
            default=default.concurrency,
            help=f"The requests at a time. Default: {default.concurrency}.",
        )
        add(
            "--mode",
            action="append",
            choices=[each.value for each in Mode],
            help=(
                "How the client takes an answer, repeatable: normal reads it; disconnect closes"
                " after the head; head sends HEAD; slow reads 64 KiB/s. Default: normal."
            ),
        )
        add("--header", action="append", metavar="'NAME: VALUE'", help="Send this header.")
        add("--cookie", action="append", metavar="NAME=VALUE", help="Send this cookie.")
        add("--method", metavar="METHOD", help="Default: GET; POST with --data.")
        add("--data", metavar="PATH", help="Send this file as the body, not by GET and HEAD.")
        add("--timeout", metavar="DURATION", help="Of one request. Default: 30s.")
        add("--settle", metavar="DURATION", help="The rest after each round. Default: 5s.")
        add(
            "--database",
            metavar="ALIAS",
            help="The alias of DATABASES that the web server uses. Default: default.",
        )
        add(
            "--application-name",
            action="append",
            metavar="GLOB",
            help="Look only at sessions with this application_name.",
        )
        add(
            "--expect",
            action="append",
            metavar="STATUS",
            help="This status is right, too, where it looks like an error, such as 404.",
        )
        add(
            "--min-leaked",
            metavar="N",
            default=default.min_leaked,
            help=f"Fewer leaked sessions are no leak. Default: {default.min_leaked}.",
        )
        add(
            "--min-share",
            metavar="PERCENT",
            default=default.min_share,
            help=(
                "Leaked sessions for fewer of a round's requests are no leak. Default:"
                f" {default.min_share:g}."
            ),
        )
        add("--format", choices=["text", "json"], default="text", help="Default: text.")
        add(
            "--yes",
            action="store_true",
            help="Send methods other than GET and HEAD without a body, too.",
        )
        add(
            "--i-own-this-host",
            action="store_true",
            help="Probe hosts other than this machine.",
        )

    def run(self, options: Mapping[str, Any]) -> None:
        """Probe, and print the reports."""
        try:
            self._run(options)
        except TargetError as error:
            raise arguments.wrong(str(error)) from None
        except RunError as error:
            if options["format"] == "json" and options["verbosity"]:
                alias = options["database"] or "default"
                self._print([render_error(str(alias), int(error.exit_code), str(error))])
            raise

    def _run(self, options: Mapping[str, Any]) -> None:
        settings = arguments.settings()
        (alias,), _ = arguments.postgres_aliases(options["database"], every=False)
        chosen = _options(options)
        targets = self._targets(options, has_body=chosen.data is not None)
        stop = Stop()
        began = time.monotonic()
        lost: LostProbeError | None = None
        try:
            with stopped_by_signals(stop):
                reports: Sequence[UrlReport] = probe_urls(
                    targets,
                    chosen,
                    alias=alias,
                    pooled=settings.pooler.get(alias) == "session",
                    stop=stop,
                    progress=self._progress if self._shows_progress(options) else None,
                    tell=self._tell if options["verbosity"] else None,
                )
        except LostProbeError as error:
            lost, reports = error, error.reports
        if self._shows_progress(options):
            self.stderr.write("\r\x1b[K", ending="")
        code = _exit(reports, stop) if lost is None else int(lost.exit_code)
        if options["verbosity"] and (reports or lost is None):
            self._write(reports, alias, options, time.monotonic() - began, code)
        if lost is not None:
            raise lost
        _fail(reports, stop)

    def _targets(self, options: Mapping[str, Any], *, has_body: bool) -> list[Target]:
        """Return the URLs of the command line and of the file, each once."""
        method = str(options["method"] or ("POST" if has_body else "GET")).upper()
        if not _TOKEN.fullmatch(method):
            raise arguments.wrong(f"--method: {shown(method)} is no method. Write GET.")
        if has_body and method in SAFE_METHODS:
            raise arguments.wrong(f"--data: {method} has no body. Leave out --method for POST.")
        if method not in SAFE_METHODS and not (has_body or options["yes"]):
            raise arguments.wrong(
                f"--method {method} may change data, as often as there are requests: name a body"
                " with --data, or add --yes."
            )
        targets = [target(each, method) for each in arguments.texts(options["urls"])]
        if path := options["list"]:
            try:
                text = Path(str(path)).read_text(encoding="utf-8")
                read = read_list(text, targets, method=method, any_method=options["yes"])
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or "it isn't text"
                raise arguments.wrong(f"--urls: {shown(str(path))}: {reason}.") from None
            except TargetError as error:
                raise arguments.wrong(f"--urls: {error}") from None
            targets += read.targets
            if options["verbosity"] and read.other_hosts:
                self._tell(f"--urls: {read.other_hosts} entries of other hosts left out")
            if options["verbosity"] and read.other_methods:
                self._tell(
                    f"--urls: {read.other_methods} entries by other methods than GET and HEAD left"
                    " out; --yes sends them without their body"
                )
        if not targets:
            raise arguments.wrong("Name a URL such as http://127.0.0.1:8000/path/, or --urls FILE.")
        return list(dict.fromkeys(targets))

    def _write(
        self,
        reports: Sequence[UrlReport],
        alias: str,
        options: Mapping[str, Any],
        seconds: float,
        code: int,
    ) -> None:
        lines: Iterable[str]
        if options["format"] == "json":
            lines = render_probe_json(reports, exit_code=code, seconds=seconds)
        else:
            width = shutil.get_terminal_size().columns if self.stdout.isatty() else None
            lines = render_reports(reports, cure=self._cure(alias), width=width)
        self._print(lines)

    def _cure(self, alias: str) -> str:
        if not self.reads_project:
            return CURE_WITHOUT_PROJECT
        engine = str(connections.settings[alias]["ENGINE"])
        return cure(alias, project.INSTALLED_APPS, project.MIDDLEWARE, engine)

    def _print(self, lines: Iterable[str]) -> None:
        with reader_may_leave(self.stdout):
            self.stdout.write("".join(f"{line}\n" for line in lines), ending="")

    def _shows_progress(self, options: Mapping[str, Any]) -> bool:
        return bool(options["verbosity"]) and self.stderr.isatty()

    def _progress(self, target: Target, mode: Mode, done: int, due: int) -> None:
        width = shutil.get_terminal_size().columns
        line = render_progress(f"{target.shown} {mode.value}", done, due, width=width)
        self.stderr.write(f"\r{line}\x1b[K", ending="")
        self.stderr.flush()

    def _tell(self, line: str) -> None:
        self.stderr.write(one_line(line))


def _options(options: Mapping[str, Any]) -> Options:
    """Return the options as values; raise CommandError for a wrong one."""
    default = Options()
    return Options(
        requests=_count(options, "requests"),
        concurrency=_count(options, "concurrency"),
        modes=tuple(dict.fromkeys(_mode(each) for each in arguments.texts(options["mode"])))
        or default.modes,
        headers=_headers(arguments.texts(options["header"])),
        cookies=dict(_cookie(each) for each in arguments.texts(options["cookie"])),
        data=_data(options["data"]),
        timeout=arguments.duration(options, "timeout") or default.timeout,
        settle=arguments.duration(options, "settle") or default.settle,
        expect=tuple(map(_status, arguments.texts(options["expect"]))),
        applications=arguments.texts(options["application_name"]),
        min_leaked=_count(options, "min_leaked"),
        min_share=arguments.percent(options, "min_share") or 0.0,
        own_host=options["i_own_this_host"],
    )


def _count(options: Mapping[str, Any], name: str) -> int:
    count = arguments.number(options, name)
    if not count:
        raise arguments.wrong(f"{arguments.flag(name)}: {options[name]!r} is not above zero.")
    return count


def _mode(name: str) -> Mode:
    try:
        return Mode(name)
    except ValueError:
        names = ", ".join(each.value for each in Mode)
        raise arguments.wrong(f"--mode: {name!r} is none of {names}.") from None


def _headers(texts: Iterable[str]) -> dict[str, str]:
    """Return the headers; the values of a name that is given twice are joined."""
    headers: dict[str, str] = {}
    for name, value in map(_header, texts):
        known = next((each for each in headers if each.lower() == name.lower()), name)
        # Source: RFC 9110, section 5.3, and RFC 6265, section 5.4.
        separator = "; " if name.lower() == "cookie" else ", "
        headers[known] = f"{headers[known]}{separator}{value}" if known in headers else value
    return headers


# No message shows a header or a cookie, because the whole text may be a secret.
def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name) or _CONTROL.search(value):
        raise arguments.wrong("--header: write 'Name: value', on one line.")
    return name, value.strip()


def _cookie(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not _TOKEN.fullmatch(name) or ";" in value or _CONTROL.search(value):
        raise arguments.wrong("--cookie: write NAME=VALUE, one cookie for each --cookie.")
    return name, value


def _status(text: str) -> int:
    if not re.fullmatch("[1-5][0-9]{2}", text):
        raise arguments.wrong(f"--expect: {shown(text)} is no status. Write 404.")
    return int(text)


def _data(path: object) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(str(path)).read_bytes()
    except OSError as error:
        raise arguments.wrong(f"--data: {shown(str(path))}: {error.strerror}.") from None


def _exit(reports: Sequence[UrlReport], stop: Stop) -> int:
    return exit_code(reports) if stop.signum is None else 128 + stop.signum


def _fail(reports: Sequence[UrlReport], stop: Stop) -> None:
    """Raise CommandError unless each URL is clean or keeps its sessions."""
    if not (code := _exit(reports, stop)):
        return
    if stop.signum is not None:
        message = f"Stopped by {signal.Signals(stop.signum).name}."
    elif code == LEAKS_EXIT:
        message = _named(reports, "Leaks", lambda each: each.verdict is Verdict.LEAKS)
    elif code == Exit.UNREACHABLE:
        first = next(each for each in reports if each.is_unreachable)
        message = (
            f"{first.target.origin}: {first.why}. Start the server there, or correct the address."
        )
    else:
        message = _named(reports, "Unclear", lambda each: each.verdict is Verdict.UNCLEAR)
    raise CommandError(one_line(message), returncode=code)


def _named(reports: Sequence[UrlReport], word: str, belongs: Callable[[UrlReport], bool]) -> str:
    """Return how many of *reports* belong, and the first of them."""
    found = [each for each in reports if belongs(each)]
    return f"{word}: {len(found)} of {len(reports)}. {sentence(found[0])}"
