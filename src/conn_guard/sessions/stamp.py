"""The stamp of process id and view that the engine appends to the application_name."""

from __future__ import annotations

import re

NAME_BYTES = 63
"""Bytes of application_name that PostgreSQL keeps. Source: its documentation, application_name."""

_STAMP = re.compile(r"(?P<name>.+?):[1-9][0-9]{0,9}(?::.*)?", re.DOTALL)


def stamp(name: str, pid: int, view: str = "") -> str:
    """Return *name* with the process id and the view appended, in at most 63 bytes.

    The view is cut between characters. A name that leaves too few bytes for the process id stays
    as it is, because half a process id would name another process.
    """
    stamped = f"{name}:{pid}"
    if len(stamped.encode()) > NAME_BYTES:
        return name
    if view:
        stamped = f"{stamped}:{view}"
    return cut(stamped)


def unstamped(application_name: str) -> str:
    """Return *application_name* without the process id and view that :func:`stamp` appended."""
    match = _STAMP.fullmatch(application_name)
    return match["name"] if match else application_name


def cut(name: str) -> str:
    """Return *name* cut to PostgreSQL's 63 bytes, never inside a character."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")
