"""The CONN_GUARD setting: its typed form, and the words for wrong keys and values."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Literal

from django.conf import Settings as DjangoSettings
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from conn_guard.text import shown

logger = logging.getLogger("conn_guard.conf")

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The numbers of processes, of threads in each, and of other connections of a deployment."""

    processes: int
    threads: int
    other: int = 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """CONN_GUARD with every value checked and every default filled in."""

    close: Literal["auto", "always", "never"] = "auto"
    close_with_owner: bool = True
    engine_idle_for: timedelta | Literal["auto"] | None = "auto"
    engine_replace: Mapping[str, bool] = field(default_factory=dict)
    stamp_origin: Literal["pid", "view"] | Literal[False] = False
    report_held_for: timedelta | None = None
    held_for_action: Literal["log", "close"] = "log"
    reap_idle_for: timedelta = timedelta(minutes=10)
    reap_idle_in_transaction_for: timedelta | None = None
    protected_applications: tuple[str, ...] = (
        "psql*",
        "pg_*",
        "pgAdmin*",
        "DBeaver*",
        "DataGrip*",
        "postgres_exporter*",
    )
    check_at_startup: Literal["log", "raise"] | None = "log"
    pooler: Mapping[str, Literal["session", "transaction"]] = field(default_factory=dict)
    budget: Budget | None = None


KEYS = tuple(each.name.upper() for each in fields(Settings))


@dataclass(frozen=True)
class Problem:
    """One wrong key or value of CONN_GUARD: the id of its check, the message and the hint."""

    id: Literal["E001", "E002", "E003"]
    message: str
    hint: str


def parse(raw: object) -> tuple[Settings, list[Problem]]:
    """Return the settings in *raw* and its problems; a wrong value keeps its default."""
    if not isinstance(raw, Mapping):
        hint = 'Write CONN_GUARD = {} or a dict of its keys, such as {"CLOSE": "auto"}.'
        return Settings(), [Problem("E001", f"CONN_GUARD is {shown(raw)}, not a dict.", hint)]
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, value in raw.items():
        if key not in _READERS:
            problems.append(
                Problem(
                    "E002",
                    f"CONN_GUARD[{shown(key)}] is not a setting of conn_guard.",
                    _nearest(key),
                )
            )
            continue
        try:
            values[key.lower()] = _READERS[key](value)
        except _WrongValueError as wrong:
            message = f"CONN_GUARD[{key!r}] is {shown(value)}, not {wrong.wanted}."
            problems.append(Problem("E003", message, wrong.hint))
    return Settings(**values), problems


def current() -> Settings:
    """Return the project's settings; never raises, but logs each problem once."""
    settings, problems = _load()
    for problem in problems:
        if problem not in _logged:
            _logged.add(problem)
            logger.error("%s The default is used. %s", problem.message, problem.hint)
    return settings


def require() -> Settings:
    """Return the project's settings, or raise ImproperlyConfigured in the words of the checks."""
    settings, problems = _load()
    if problems:
        raise ImproperlyConfigured(
            " ".join(f"{problem.message} {problem.hint}" for problem in problems)
        )
    return settings


def problems() -> list[Problem]:
    """Return the problems of the project's CONN_GUARD."""
    return _load()[1]


def parse_duration(text: str) -> timedelta:
    """Return the duration in *text*: ``90``, ``0.5s``, ``90s``, ``10m``, ``2h`` or ``1d``.

    A bare number is seconds. Raises ValueError, in one line, for any other text.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write 90s, 10m, 2h or 1d.")
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError(f"{text!r} is too long a duration: write at most 999999999d.") from None


_ABSENT: Mapping[str, object] = {}
_cached: tuple[object, tuple[Settings, list[Problem]]] | None = None
_logged: set[Problem] = set()


def _load() -> tuple[Settings, list[Problem]]:
    global _cached
    # Each request asks. Django is slow for an absent setting, because it raises, and its own way
    # to ``_wrapped`` passes through a method.
    module: Any = object.__getattribute__(django_settings, "_wrapped")
    if type(module) is DjangoSettings and "CONN_GUARD" not in vars(module):
        raw: object = _ABSENT
    else:
        raw = getattr(django_settings, "CONN_GUARD", _ABSENT)
    cached = _cached
    # An overridden setting is another object, so identity is enough and no signal is needed.
    if cached is None or cached[0] is not raw:
        _cached = cached = (raw, parse(raw))
    return cached[1]


class _WrongValueError(Exception):
    def __init__(self, wanted: str, hint: str) -> None:
        self.wanted = wanted
        self.hint = hint


def _nearest(key: object) -> str:
    near = (
        difflib.get_close_matches(key.upper(), KEYS, n=1, cutoff=0.6)
        if isinstance(key, str)
        else []
    )
    return f"Did you mean {near[0]!r}?" if near else f"The keys are {', '.join(KEYS)}."


def _choice(*choices: object) -> Callable[[object], object]:
    def read(value: object) -> object:
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        named = [repr(choice) for choice in choices]
        raise _WrongValueError(
            f"{', '.join(named[:-1])} or {named[-1]}", f"Write {named[0]}, which is the default."
        )

    return read


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _WrongValueError("True or False", "Write True or False, without quotes.")


def _duration(value: object) -> timedelta:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise _WrongValueError("a duration", "Write timedelta(minutes=10), or 600 for seconds.")
    try:
        usable = math.isfinite(seconds) and seconds > 0
        duration = timedelta(seconds=seconds) if usable else timedelta(0)
    except OverflowError:
        usable = False
    if not usable:
        raise _WrongValueError(
            "a duration above zero", "Write timedelta(minutes=10), or 600 for seconds."
        )
    return duration


def _duration_or(*words: object) -> Callable[[object], object]:
    def read(value: object) -> object:
        return (
            value
            if any(value is word or (word and value == word) for word in words)
            else _duration(value)
        )

    return read


def _names(value: object) -> tuple[str, ...]:
    if (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and all(isinstance(name, str) for name in value)
    ):
        return tuple(value)
    raise _WrongValueError(
        "a list of application names", 'Write a list of globs, such as ["psql*", "pg_*"].'
    )


def _pooler(value: object) -> Mapping[str, object]:
    if isinstance(value, Mapping) and all(
        isinstance(alias, str) and isinstance(mode, str) and mode in ("session", "transaction")
        for alias, mode in value.items()
    ):
        return dict(value)
    raise _WrongValueError(
        'a dict of aliases to "session" or "transaction"', 'Write {"default": "transaction"}.'
    )


def _replace(value: object) -> Mapping[str, bool]:
    if isinstance(value, Mapping) and all(
        isinstance(alias, str) and isinstance(replace, bool) for alias, replace in value.items()
    ):
        return dict(value)
    raise _WrongValueError("a dict of aliases to True or False", 'Write {"default": False}.')


def _budget(value: object) -> Budget | None:
    if value is None:
        return None
    if (
        isinstance(value, Mapping)
        and {"processes", "threads"} <= set(value) <= {"processes", "threads", "other"}
        and all(isinstance(count, int) and not isinstance(count, bool) for count in value.values())
        and value["processes"] > 0
        and value["threads"] > 0
        and value.get("other", 0) >= 0
    ):
        return Budget(**value)
    raise _WrongValueError(
        "None or a dict of counts", 'Write {"processes": 4, "threads": 8, "other": 10}.'
    )


_READERS: dict[object, Callable[[object], object]] = {
    "CLOSE": _choice("auto", "always", "never"),
    "CLOSE_WITH_OWNER": _boolean,
    "ENGINE_IDLE_FOR": _duration_or("auto", None),
    "ENGINE_REPLACE": _replace,
    "STAMP_ORIGIN": _choice(False, "pid", "view"),  # noqa: FBT003
    "REPORT_HELD_FOR": _duration_or(None),
    "HELD_FOR_ACTION": _choice("log", "close"),
    "REAP_IDLE_FOR": _duration,
    "REAP_IDLE_IN_TRANSACTION_FOR": _duration_or(None),
    "PROTECTED_APPLICATIONS": _names,
    "CHECK_AT_STARTUP": _choice("log", "raise", None),
    "POOLER": _pooler,
    "BUDGET": _budget,
}
