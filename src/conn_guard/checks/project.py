"""What the settings say, by value: this room holds the project and its aliases as the rules see them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

from django.conf import settings as django_settings

from conn_guard import conf

DUMMY = "django.db.backends.dummy"
_EMPTY: Mapping[object, object] = {}


@dataclass(frozen=True)
class Project:
    """The settings of a project; nothing here is imported, connected to or written to."""

    settings: Any

    @classmethod
    def current(cls) -> Project:
        """Return the running project."""
        return cls(django_settings)

    def get(self, name: str, default: object = None) -> Any:
        """Return the setting *name*, or *default* where it isn't there."""
        return getattr(self.settings, name, default)

    @cached_property
    def conn_guard(self) -> conf.Settings:
        """CONN_GUARD as far as it can be read."""
        return conf.parse(self.get("CONN_GUARD", {}))[0]

    @cached_property
    def aliases(self) -> tuple[Alias, ...]:
        """Every alias whose value is a dict."""
        databases = self.get("DATABASES")
        if not isinstance(databases, Mapping):
            return ()
        return tuple(Alias(self, name, values) for name, values in databases.items() if isinstance(values, Mapping))

    @cached_property
    def middleware(self) -> tuple[str, ...]:
        """The import strings in MIDDLEWARE."""
        listed = self.get("MIDDLEWARE")
        return tuple(each for each in listed if isinstance(each, str)) if isinstance(listed, (list, tuple)) else ()


@dataclass(frozen=True)
class Alias:
    """One alias of DATABASES. Django fills in its defaults at the first use, so an absent key reads as the default."""

    project: Project
    name: object
    values: Mapping[object, object]

    def __str__(self) -> str:
        return f"DATABASES[{shown(self.name)}]"

    @cached_property
    def engine(self) -> str:
        """ENGINE, with Django's word for none."""
        engine = self.values.get("ENGINE")
        return engine if isinstance(engine, str) and engine not in ("", "django.db.backends.") else DUMMY

    @cached_property
    def connects(self) -> bool:
        """Whether anything is ever opened for this alias."""
        return self.engine != DUMMY

    @cached_property
    def age(self) -> object:
        """CONN_MAX_AGE."""
        return self.values.get("CONN_MAX_AGE", 0)

    @cached_property
    def persistent(self) -> bool:
        """Whether a connection outlives its request. A nan does: Django's comparison with it is never true."""
        return self.age is None or (isinstance(self.age, Real) and not self.age <= 0)


def shown(value: object) -> str:
    """Return *value* as a message may show it: short, and never what could hold a password."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, str):
        text = str(value)
        return "a text that is not shown here" if _SECRET.search(text) else repr(text if len(text) < 80 else text[:77] + "...")
    if isinstance(value, int):
        return repr(value) if value.bit_length() < 100 else f"a number of {math.floor(value.bit_length() * 0.30103) + 1} digits"
    if type(value).__name__ in ("timedelta", "Decimal"):
        return repr(value)
    if isinstance(value, (list, tuple)) and len(value) < 4 and not any(isinstance(each, (list, tuple)) for each in value):
        inner = ", ".join(shown(each) for each in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    return f"of type {type(value).__name__}"


_SECRET = re.compile(r"://|@|pass|pwd|secret|token|key", re.IGNORECASE)
