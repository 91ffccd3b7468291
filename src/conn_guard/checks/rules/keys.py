"""Rules about keys in the wrong place or the wrong spelling, and about texts in place of flags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache

from conn_guard.checks.project import KEYS, Alias, Project, is_key
from conn_guard.checks.registry import Found, Rule
from conn_guard.text import shown

DEFAULTS: Mapping[str, object] = {
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": False,
    "DISABLE_SERVER_SIDE_CURSORS": False,
}
# Spellings that people use and whose letters alone are too far off.
SWAPPED = {"MAXCONNAGE": "CONN_MAX_AGE", "CONNAGE": "CONN_MAX_AGE"}
ALIKE = 0.85


# Misspelt


def key_misspelt(alias: Alias) -> Iterator[Found]:
    for key in alias.values:
        meant = _meant(key)
        if meant is not None and key != meant:
            yield f"{alias} has the key {shown(key)}, which Django ignores.", f"Write {meant!r}."


def _meant(key: object) -> str | None:
    """Return the key of Django's that *key* is close to, or None."""
    return _nearest(key) if isinstance(key, str) else None


@lru_cache(maxsize=256)  # aliases have their keys in common
def _nearest(key: str) -> str | None:
    letters = _letters(key)
    if letters in SWAPPED:
        return SWAPPED[letters]
    for candidate in KEYS:
        if SequenceMatcher(None, letters, _letters(candidate)).ratio() >= ALIKE:
            return candidate
    return None


def _letters(key: str) -> str:
    return re.sub(r"[^A-Z]", "", key.upper()).replace("CONNECTION", "CONN")


# Misplaced


def key_at_top_level(project: Project) -> Iterator[Found]:
    # A variable of the module that DATABASES uses is no mistake. So the rule is silent if one
    # alias has another value than the default.
    alias = next((alias for alias in project.aliases if alias.engine.connects), None)
    for key, default in DEFAULTS.items():
        value = project.get(key, default)
        if (
            alias
            and value != default
            and not any(_uses(each, key, default) for each in project.aliases)
        ):
            yield (
                f"The setting {key} is {shown(value)} beside DATABASES, where Django ignores it.",
                f"Write it into the alias: {alias}[{key!r}].",
            )


def _uses(alias: Alias, key: str, default: object) -> bool:
    """Return whether *alias* sets *key*, even misspelt (W105) or in OPTIONS (E107)."""
    if alias.values.get(key, default) != default:
        return True
    return any(_meant(each) == key and each != key for each in alias.values) or any(
        _meant(each) == key for each in alias.options
    )


def key_in_options(alias: Alias) -> Iterator[Found]:
    for key in alias.options:
        if is_key(key):
            yield (
                f"{alias}['OPTIONS'] has the key {shown(key)}, which the driver doesn't know.",
                f"Move it out of OPTIONS: {alias}[{str(key).upper()!r}].",
            )


# Without an engine


def alias_without_engine(alias: Alias) -> Iterator[Found]:
    said = [key for key, value in alias.values.items() if not _is_djangos_default(key, value)]
    if not alias.engine.connects and said:
        others = [str(other.name) for other in alias.project.aliases if other.engine.connects]
        near = get_close_matches(str(alias.name), others, n=1)
        yield (
            f"{alias} has {', '.join(shown(key) for key in said)} and no ENGINE.",
            f"Did you mean the alias {near[0]!r}?" if near else 'Write its "ENGINE".',
        )


# The values that Django itself writes into every alias. Source:
# django.db.utils.ConnectionHandler.configure_settings.
_WRITTEN: Mapping[object, object] = {
    "ATOMIC_REQUESTS": False,
    "AUTOCOMMIT": True,
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": False,
    "OPTIONS": {},
    "TIME_ZONE": None,
    **dict.fromkeys(("NAME", "USER", "PASSWORD", "HOST", "PORT"), ""),
}
_WRITTEN_TEST = {"CHARSET": None, "COLLATION": None, "MIGRATE": True, "MIRROR": None, "NAME": None}


def _is_djangos_default(key: object, value: object) -> bool:
    if key == "TEST" and isinstance(value, Mapping):
        return all(
            name in _WRITTEN_TEST and each == _WRITTEN_TEST[name] for name, each in value.items()
        )
    return key == "ENGINE" or (key in _WRITTEN and value == _WRITTEN[key])


# Flags


def flag_string(alias: Alias) -> Iterator[Found]:
    for key in ("CONN_HEALTH_CHECKS", "DISABLE_SERVER_SIDE_CURSORS", "ATOMIC_REQUESTS"):
        value = alias.values.get(key)
        if isinstance(value, str):
            yield (
                f"{alias}[{key!r}] is the text {shown(value)}, which counts as {bool(value)}.",
                "Write True or False without quotes; cast a variable of the environment to bool.",
            )


RULES = (
    Rule(
        id="W105",
        slug="key-misspelt",
        subject="alias",
        why="A misspelt key has no effect, and Django reports nothing.",
        django="Django ignores keys that it doesn't know, so the setting keeps its default.",
        cure="Write the key as the hint spells it.",
        find=key_misspelt,
    ),
    Rule(
        id="W106",
        slug="key-at-top-level",
        subject="project",
        why=(
            "A setting beside DATABASES has no effect. The check is silent where any alias has a"
            " value of its own, because DATABASES may use the variable."
        ),
        django="Django reads these keys from each alias of `DATABASES` only.",
        cure='Move it into the alias: `DATABASES["default"]["CONN_MAX_AGE"] = 60`.',
        find=key_at_top_level,
    ),
    Rule(
        id="E107",
        slug="key-in-options",
        subject="alias",
        why="These four keys are Django's; OPTIONS is for the driver.",
        django=(
            "Django passes OPTIONS to the driver: `ProgrammingError: invalid connection option` on"
            " PostgreSQL, `TypeError` on SQLite and MySQL, at the first query."
        ),
        cure=(
            "Move the key out of OPTIONS, beside it. dj-database-url puts `?conn_max_age=60` of a"
            " URL into OPTIONS: pass the argument `conn_max_age=60` instead."
        ),
        find=key_in_options,
    ),
    Rule(
        id="E108",
        slug="alias-without-engine",
        subject="alias",
        why="An alias with values and without an ENGINE is nearly always a misspelt alias.",
        django=(
            "Django uses its dummy engine, which raises `ImproperlyConfigured` at the first query."
        ),
        cure="Write the ENGINE, or spell the alias as elsewhere in DATABASES.",
        find=alias_without_engine,
    ),
    Rule(
        id="W109",
        slug="flag-string",
        subject="alias",
        why=(
            'The text "False" switches a flag on. This check helps projects that read a flag from'
            " the environment without a cast, as physionet-build did (#2333)."
        ),
        django="Django asks whether the value is true. Every text but the empty one is.",
        cure='Write `True` or `False`, or cast: `env.bool("NAME")`, `config("NAME", cast=bool)`.',
        find=flag_string,
    ),
)
