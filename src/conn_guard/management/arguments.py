"""Reads the options of the commands; every error is one line and exit code 2.

Options are read after parsing, so that ``call_command("idle_reaper",
idle_for=timedelta(minutes=5))`` works like the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import TextIOWrapper
from ipaddress import ip_network
from typing import Any, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from conn_guard import conf
from conn_guard.sessions.policy import ANY_USER, Network
from conn_guard.sessions.report import Exit, RunError
from conn_guard.text import masked, one_line


class OneLineParser(CommandParser):
    """Django's parser, whose errors have no usage text."""

    def error(self, message: str) -> NoReturn:
        """Print *message* in one line and exit with 2; raise it when called from Python."""
        if self.called_from_command_line:
            self.exit(Exit.USAGE, f"CommandError: {one_line(masked(message))}\n")
        raise wrong(message)


class OneLineCommand(BaseCommand):
    """A command whose errors are one line; an error of another check doesn't stop it."""

    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own spelling

    reads_project = True
    """False for conn-guard, which has neither aliases nor CONN_GUARD."""

    def before_login(self) -> None:
        """Look for a server before a run that doesn't wait for one; may end the process."""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Return Django's parser, with errors on one line."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.__class__ = OneLineParser  # Django has no option for it
        return parser

    def handle(self, *args: Any, **options: Any) -> None:
        """Run; every failure is a CommandError whose returncode is the exit code."""
        as_html = options.get("format") == "html"
        try:
            with _any_character(
                self.stdout, "xmlcharrefreplace" if as_html else "backslashreplace"
            ):
                self.run(options)
        except CommandError:
            raise
        except RunError as error:
            raise CommandError(one_line(str(error)), returncode=error.exit_code) from None
        except Exception as error:
            message = f"Unexpected {type(error).__name__}: {one_line(str(error))}"
            raise CommandError(message, returncode=Exit.UNEXPECTED) from error

    def run(self, options: Mapping[str, Any]) -> None:
        """Do the work of the command. Raises CommandError and RunError for what it expects."""
        raise NotImplementedError


@contextmanager
def _any_character(stream: Any, errors: str) -> Iterator[None]:
    """Let *stream* write characters that its encoding lacks, such as ``≤``, by *errors*."""
    out = getattr(stream, "_out", None)
    if not isinstance(out, TextIOWrapper) or out.errors != "strict":
        yield
        return
    out.reconfigure(errors=errors)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            out.reconfigure(errors="strict")


def wrong(message: str) -> CommandError:
    """Return the error for a wrong call of a command; a DSN in the wrong place isn't repeated."""
    return CommandError(one_line(masked(message)), returncode=Exit.USAGE)


def settings() -> conf.Settings:
    """Return CONN_GUARD; raise CommandError if it is wrong, because no system checks run."""
    if problems := conf.problems():
        raise wrong(" ".join(f"{problem.message} {problem.hint}" for problem in problems))
    return conf.current()


def postgres_aliases(named: object, *, every: bool) -> tuple[list[str], list[str]]:
    """Return the aliases to use, and with *every* those skipped because they aren't PostgreSQL."""
    if every:
        known = list(connections.settings)
        chosen = [alias for alias in known if _is_postgres(alias)]
        if not chosen:
            raise wrong("No alias of DATABASES is a PostgreSQL.")
        return chosen, [alias for alias in known if alias not in chosen]
    aliases = list(dict.fromkeys(texts(named))) or ["default"]
    for alias in aliases:
        if alias not in connections.settings:
            known_names = ", ".join(repr(each) for each in connections.settings)
            # It may be an address with a password, typed where an alias belongs.
            named = "of this name" if set("@=:") & set(alias) else repr(alias)
            raise wrong(f"There is no alias {named} in DATABASES. Name one of {known_names}.")
        if not _is_postgres(alias):
            raise wrong(
                f"DATABASES[{alias!r}] is no PostgreSQL, so it has no sessions to look at. Name"
                " another alias."
            )
    return aliases, []


def texts(value: object) -> tuple[str, ...]:
    """Return the values of a repeatable option; Python callers may give one text or several."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    return tuple(str(each) for each in value) if isinstance(value, Sequence) else (str(value),)


def duration(options: Mapping[str, Any], name: str, *, zero: bool = False) -> timedelta | None:
    """Return the option *name* as a duration above zero, or with *zero* from zero on.

    None if it isn't given.
    """
    value = options[name]
    if value is None:
        return None
    try:
        read = value if isinstance(value, timedelta) else conf.parse_duration(str(value))
    except ValueError as error:
        raise wrong(f"{flag(name)}: {error}") from None
    if read < timedelta(0) or not (read or zero):
        raise wrong(f"{flag(name)}: {value!s} is not above zero.")
    return read


def number(options: Mapping[str, Any], name: str, *, least: int = 0) -> int | None:
    """Return the option *name* as a whole number from *least* on; None if it isn't given."""
    value = options[name]
    if value is None:
        return None
    if not str(value).isdecimal() or int(value) < least:
        raise wrong(f"{flag(name)}: {value!r} is not a whole number from {least} on.")
    return int(value)


def percent(options: Mapping[str, Any], name: str) -> float | None:
    """Return the option *name* as a percentage; None if it isn't given."""
    value = options[name]
    if value is None:
        return None
    try:
        read = float(str(value).removesuffix("%"))
    except ValueError:
        read = math.nan
    if not 0 <= read <= 100:
        raise wrong(f"{flag(name)}: {value!r} is not a percentage from 0 to 100.")
    return read


def networks(options: Mapping[str, Any], name: str) -> tuple[Network, ...]:
    """Return the option *name* as networks; an address is a network of one address."""
    read = []
    for each in texts(options[name]):
        try:
            read.append(ip_network(each, strict=False))
        except ValueError:
            raise wrong(
                f"{flag(name)}: {each!r} is neither a network such as 10.0.0.0/8 nor an address."
            ) from None
    return tuple(read)


def roles(options: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return the option *name* as exact role names or a lone ``*``."""
    named = texts(options[name])
    if ANY_USER in named and len(named) > 1:
        raise wrong(f"{flag(name)} '*' means every role and stands alone.")
    return named


def flag(name: str) -> str:
    """Return the option *name* as it is typed."""
    return f"--{name.replace('_', '-')}"


def _is_postgres(alias: str) -> bool:
    try:
        return connections[alias].vendor == "postgresql"
    except (ImproperlyConfigured, ImportError):
        # An engine that can't be imported, for lack of GDAL or a driver, is judged by its name.
        return "postg" in connections.settings[alias]["ENGINE"]
