"""What the commands share on their way in: this room holds a parser that errs in one line and the
reading of options.

An option is read after parsing, so that ``call_command("idle_reaper",
idle_for=timedelta(minutes=5))`` works as the command line does. Whatever is wrong is a CommandError
with returncode 2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from ipaddress import ip_network
from typing import Any, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser
from django.db import connections

from conn_guard import conf
from conn_guard.sessions.policy import ANY_USER, Network
from conn_guard.sessions.report import Exit
from conn_guard.text import one_line


class OneLineParser(CommandParser):
    """Django's parser without the usage text around an error."""

    def error(self, message: str) -> NoReturn:
        """Say *message* in one line and exit with 2, or raise it where there is no command line."""
        if self.called_from_command_line:
            self.exit(Exit.USAGE, f"CommandError: {one_line(message)}\n")
        raise wrong(message)


def wrong(message: str) -> CommandError:
    """Return the error of a command that was called wrongly."""
    return CommandError(one_line(message), returncode=Exit.USAGE)


def settings() -> conf.Settings:
    """Return CONN_GUARD; the commands run no system checks, so they ask for its problems
    themselves.
    """
    if problems := conf.problems():
        raise wrong(" ".join(f"{problem.message} {problem.hint}" for problem in problems))
    return conf.current()


def postgres_aliases(named: object, *, every: bool) -> tuple[list[str], list[str]]:
    """Return the PostgreSQL aliases that are meant, and with *every* the ones left out because they
    are none.
    """
    if every:
        known = list(connections.settings)
        meant = [alias for alias in known if _is_postgres(alias)]
        if not meant:
            raise wrong("No alias of DATABASES is a PostgreSQL.")
        return meant, [alias for alias in known if alias not in meant]
    aliases = list(dict.fromkeys(texts(named))) or ["default"]
    for alias in aliases:
        if alias not in connections.settings:
            known_names = ", ".join(repr(each) for each in connections.settings)
            raise wrong(f"There is no alias {alias!r} in DATABASES. Name one of {known_names}.")
        if not _is_postgres(alias):
            raise wrong(
                f"DATABASES[{alias!r}] is no PostgreSQL, so it has no sessions to look at. Name"
                " another alias."
            )
    return aliases, []


def texts(value: object) -> tuple[str, ...]:
    """Return a repeatable option's values; Python callers may give one text or several."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    return tuple(str(each) for each in value) if isinstance(value, Sequence) else (str(value),)


def duration(options: Mapping[str, Any], name: str, *, zero: bool = False) -> timedelta | None:
    """Return the option *name* as a duration above zero, or from zero on; None where it isn't
    given.
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


def number(options: Mapping[str, Any], name: str) -> int | None:
    """Return the option *name* as a whole number from zero on; None where it isn't given."""
    value = options[name]
    if value is None:
        return None
    if not str(value).isdecimal():
        raise wrong(f"{flag(name)}: {value!r} is not a whole number from 0 on.")
    return int(value)


def percent(options: Mapping[str, Any], name: str) -> float | None:
    """Return the option *name* as a percentage; None where it isn't given."""
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
    """Return the option *name* as networks; an address is a network of one."""
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
    """Return the option *name* as people type it."""
    return f"--{name.replace('_', '-')}"


def _is_postgres(alias: str) -> bool:
    try:
        return connections[alias].vendor == "postgresql"
    except (ImproperlyConfigured, ImportError):
        # An engine that can't be loaded here, GDAL or a driver being absent, is judged by its name.
        return "postg" in connections.settings[alias]["ENGINE"]
