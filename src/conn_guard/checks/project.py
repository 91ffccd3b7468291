"""The settings as the rules read them, by value: the project and its aliases."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal

from django.conf import settings as django_settings
from django.utils.functional import LazyObject, Promise

from conn_guard import conf
from conn_guard.checks import engines
from conn_guard.checks.engines import Engine
from conn_guard.text import shown

YEAR_SECONDS = 365 * 24 * 60 * 60
TENANTS = ("django_tenants", "tenant_schemas")
KEYS = ("CONN_MAX_AGE", "CONN_HEALTH_CHECKS", "DISABLE_SERVER_SIDE_CURSORS", "ATOMIC_REQUESTS")
"""The keys of an alias that decide how Django treats its connections."""


@dataclass(frozen=True)
class Project:
    """The settings of a project. Nothing in them is imported, connected to or written to."""

    settings: Any

    @classmethod
    def current(cls) -> Project:
        """Return the running project."""
        return cls(django_settings)

    def get(self, name: str, default: object = None) -> Any:
        """Return the setting *name*, or *default* where it is absent."""
        return getattr(self.settings, name, default)

    @cached_property
    def conn_guard(self) -> conf.Settings:
        """CONN_GUARD with a default for each value that is absent or wrong."""
        return self._parsed[0]

    @cached_property
    def conn_guard_problems(self) -> list[conf.Problem]:
        """Everything that is wrong with CONN_GUARD."""
        return self._parsed[1]

    @cached_property
    def _parsed(self) -> tuple[conf.Settings, list[conf.Problem]]:
        return conf.parse(self.get("CONN_GUARD", {}))

    @cached_property
    def aliases(self) -> tuple[Alias, ...]:
        """Every alias whose value is a dict."""
        databases = self.get("DATABASES")
        if not isinstance(databases, Mapping):
            return ()
        return tuple(
            Alias(self, name, values)
            for name, values in databases.items()
            if isinstance(values, Mapping)
        )

    @cached_property
    def middleware(self) -> tuple[str, ...]:
        """The import strings in MIDDLEWARE."""
        return self._texts("MIDDLEWARE")

    @cached_property
    def tenants(self) -> str | None:
        """The app that gives each tenant a schema, or None for a project without tenants."""
        # A router of these apps is enough: an app may be installed under a config of the project.
        listed = self._texts("INSTALLED_APPS") + self._texts("DATABASE_ROUTERS")
        apps = (path.partition(".")[0] for path in listed)
        return next((app for app in apps if app in TENANTS), None)

    @cached_property
    def served_by(self) -> Literal["ASGI", "either"] | None:
        """ASGI where the settings name no other server, "either", or None without ASGI."""
        if not self.get("ASGI_APPLICATION"):
            return None
        return "either" if self.get("WSGI_APPLICATION") else "ASGI"

    @cached_property
    def driver(self) -> engines.Driver | None:
        """The driver that Django takes."""
        return engines.driver()

    def silences(self, id: str) -> bool:  # noqa: A002
        """Return whether SILENCED_SYSTEM_CHECKS names the check *id*."""
        silenced = self.get("SILENCED_SYSTEM_CHECKS")
        return isinstance(silenced, (list, tuple, set)) and f"conn_guard.{id}" in silenced

    def _texts(self, name: str) -> tuple[str, ...]:
        listed = self.get(name)
        if not isinstance(listed, (list, tuple)):
            return ()
        return tuple(each for each in listed if isinstance(each, str))


@dataclass(frozen=True)
class Alias:
    """One alias of DATABASES.

    Django writes its defaults into DATABASES at the first use of a connection, so an absent key and
    a key with the default value must read the same.
    """

    project: Project
    name: object
    values: Mapping[object, object]

    def __str__(self) -> str:
        return f"DATABASES[{shown(self.name)}]"

    @cached_property
    def engine(self) -> Engine:
        """ENGINE."""
        return Engine.of(self.values.get("ENGINE"))

    @cached_property
    def runs_our_engine(self) -> bool:
        """Whether ENGINE is conn_guard's, or a tenants' engine that is built on conn_guard's.

        Source: ORIGINAL_BACKEND in django_tenants.postgresql_backend.base.
        """
        if self.engine.has_tenants:
            return Engine.of(self.project.get("ORIGINAL_BACKEND")).is_ours
        return self.engine.is_ours

    @cached_property
    def replaces_ended_sessions(self) -> bool:
        """Whether the engine opens a new session, unseen, for one that the server ended."""
        replace = self.project.conn_guard.engine_replace
        return self.runs_our_engine and replace.get(self.name, True)  # type: ignore[call-overload]

    @cached_property
    def age(self) -> object:
        """CONN_MAX_AGE; a float in place of a lazy number."""
        age = self.values.get("CONN_MAX_AGE", 0)
        if isinstance(age, (LazyObject, Promise)):
            # A lazy number can be added, as Django does, but not compared.
            with suppress(TypeError):
                return 0.0 + age  # type: ignore[operator]
        return age

    @cached_property
    def persistent(self) -> bool:
        """Whether a connection outlives its request."""
        # Django's comparison with a nan is never true, so the connection is never closed.
        return self.age is None or (isinstance(self.age, Real) and not self.age <= 0)

    @cached_property
    def health_checks(self) -> bool:
        """Whether CONN_HEALTH_CHECKS counts as true."""
        return bool(self.values.get("CONN_HEALTH_CHECKS", False))

    @cached_property
    def cursors_disabled(self) -> bool:
        """Whether DISABLE_SERVER_SIDE_CURSORS counts as true."""
        return bool(self.values.get("DISABLE_SERVER_SIDE_CURSORS", False))

    @cached_property
    def options(self) -> Mapping[object, object]:
        """OPTIONS, empty where it is not a dict."""
        options = self.values.get("OPTIONS")
        return options if isinstance(options, Mapping) else {}

    @cached_property
    def pool(self) -> object:
        """OPTIONS["pool"]."""
        return self.options.get("pool")

    @cached_property
    def pool_unsupported(self) -> str | None:
        """The reason why OPTIONS["pool"] fails here whatever its value, or None."""
        return self.engine.pool_unsupported(self.project.driver)

    @cached_property
    def can_pool(self) -> bool:
        """Whether OPTIONS["pool"] would make a pool here."""
        return self.engine.reads_pool and self.pool_unsupported is None

    @cached_property
    def pools(self) -> bool:
        """Whether OPTIONS["pool"] makes a pool here."""
        return bool(self.pool) and self.can_pool

    @cached_property
    def pool_options(self) -> Mapping[object, object]:
        """The options of Django's pool, empty for a pool with its defaults."""
        return self.pool if isinstance(self.pool, Mapping) else {}

    @cached_property
    def pool_sizes(self) -> tuple[object, object]:
        """The pool's min_size and max_size, with psycopg_pool's defaults."""
        least = self.pool_options.get("min_size", 4)
        most = self.pool_options.get("max_size")
        return least, least if most is None else most

    @cached_property
    def kept_seconds(self) -> float:
        """The longest time that an unused connection is kept: 0 for none, infinity for no limit."""
        if self.pools:
            # max_idle ends only the connections beyond the first min_size.
            key, default = ("max_lifetime", 3600.0) if self.pool_sizes[0] else ("max_idle", 600.0)
            kept = self.pool_options.get(key, default)
            return float(kept) if isinstance(kept, Real) else default
        if not self.persistent:
            return 0
        return (
            float(self.age) if isinstance(self.age, Real) and self.age < YEAR_SECONDS else math.inf
        )

    @cached_property
    def startup_settings(self) -> Mapping[str, str]:
        """The settings of the server in OPTIONS["options"]; the last value of a name wins."""
        text = self.options.get("options")
        if not isinstance(text, str):
            return {}
        return {
            match["name"].replace("-", "_").lower(): match["value"]
            for match in _STARTUP.finditer(text)
        }

    @cached_property
    def addresses(self) -> tuple[tuple[str, str], ...]:
        """Host and port of each server that libpq may try; an empty port is libpq's default."""
        hosts = _listed(
            self.values.get("HOST") or self.options.get("host") or self.options.get("hostaddr")
        )
        ports = _listed(self.values.get("PORT") or self.options.get("port"))
        if len(ports) < len(hosts):
            ports = ports * len(hosts) if len(ports) == 1 else (*ports, *[""] * len(hosts))
        return tuple(zip(hosts, ports, strict=False))

    @cached_property
    def pooler(self) -> tuple[Literal["transaction", "session", "unknown"], str] | None:
        """The mode of the pooler before the server and the evidence, or None for no pooler."""
        if not self.engine.may_be_postgres:
            return None
        declared = self.project.conn_guard.pooler.get(self.name)  # type: ignore[call-overload]
        if declared:
            return declared, f"CONN_GUARD['POOLER'] says {declared!r}"
        found = [each for host, port in self.addresses if (each := engines.pooler(host, port))]
        return min(found, key=lambda each: each[0] != "transaction", default=None)


def is_key(key: object) -> bool:
    """Return whether *key* is one of KEYS in any case, and so not an option of a driver."""
    return isinstance(key, str) and key.upper() in KEYS


# Both spellings of libpq: -c name=value and --name=value. A value may be quoted for the shell's
# sake; a space in it is written with a backslash.
_STARTUP = re.compile(
    r"""(?:^|(?<=\s))(?:-c\s*|--)(?P<name>[A-Za-z_][\w.-]*)=(?P<value>(?:\\.|[^\s\\])*)"""
)


def _listed(value: object) -> tuple[str, ...]:
    """Return the hosts or ports in *value*, at least one; an empty text is libpq's default."""
    if isinstance(value, (list, tuple)):
        return tuple(part for each in value for part in _listed(each)) or ("",)
    # No port is larger, and Python refuses to print the largest numbers.
    is_port = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536
    text = str(value) if is_port or isinstance(value, str) else ""
    return tuple(part.strip().lower().rstrip(".") for part in text.split(","))
