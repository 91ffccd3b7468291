"""Values and names as messages show them: on one line, safe for a terminal, without a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal


def one_line(text: str) -> str:
    """Return *text* in one line with nothing in it that a terminal would obey."""
    return printable(" ".join(text.split()))


def printable(name: str) -> str:
    """Return *name* with each character that can't be printed in its escaped form."""
    if name.isprintable():
        return name
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )


def masked(text: str) -> str:
    """Return *text* with each URL that has a user, and each password of a DSN, as ``***``."""
    return _WITH_PASSWORD.sub("***", text)


_WITH_PASSWORD = re.compile(
    r"[a-z][a-z0-9+.-]*://[^\s'\"]*@[^\s'\"]*|\bpassword\s*=\s*('[^']*'|[^\s'\"]+)", re.IGNORECASE
)


def sql_name(name: str) -> str:
    """Return the name of a role or a database as SQL writes it."""
    is_plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name)
    return name if is_plain else '"' + name.replace('"', '""') + '"'


def duration(seconds: float) -> str:
    """Return *seconds* as people read them: ``0.4s``, ``42s``, ``10m05s``, ``3h07m``, ``2d04h``."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


# A URL or a connection string may hold a password, wherever it was found.
_SECRET = re.compile(r"://|@|(?:pass\w*|pwd|secret|token|key)\s*[=:]", re.IGNORECASE)


def shown(value: object) -> str:
    """Return *value* as a message may show it: on one line, short, and never what could hold a
    password.
    """
    if isinstance(value, str):
        text = str(value)
        if _SECRET.search(text):
            return "(a text that may hold a secret)"
        return repr(text if len(text) <= 80 else f"{text[:77]}...")
    if isinstance(value, int) and abs(value) >= 10**20:
        return "(a number of more than 20 digits)"  # Python refuses to print the longest ones
    if value is None or isinstance(value, (bool, int, float, timedelta, Decimal)):
        return repr(value)
    if isinstance(value, (list, tuple)) and len(value) <= 3:
        inner = ", ".join(_members(value))
        return (
            f"[{inner}]"
            if isinstance(value, list)
            else f"({inner}{',' if len(value) == 1 else ''})"
        )
    return f"(a {type(value).__name__})"


def _members(values: list[object] | tuple[object, ...]) -> Iterator[str]:
    for value in values:
        yield "..." if isinstance(value, (list, tuple)) else shown(value)
