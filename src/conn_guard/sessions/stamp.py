"""Where a session comes from, written into its application_name: this room holds the stamp that the
engine appends.
"""

from __future__ import annotations

import re

NAME_BYTES = 63
"""Bytes of application_name that PostgreSQL keeps (NAMEDATALEN - 1). Source: PostgreSQL
documentation, application_name.
"""

_STAMP = re.compile(r"(?P<name>.+?):[1-9][0-9]{0,9}(?::.*)?", re.DOTALL)


def stamp(name: str, pid: int, view: str = "") -> str:
    """Return *name* with the process id, and with the view where one is given, in at most 63 bytes.

    The view is cut between characters; a name that leaves no room for the whole process id stays as
    it is, because half a process id would point at another process."""
    stamped = f"{name}:{pid}"
    if len(stamped.encode()) > NAME_BYTES:
        return name
    if view:
        stamped = f"{stamped}:{view}"
    return cut(stamped)


def unstamped(application_name: str) -> str:
    """Return *application_name* without what :func:`stamp` appended."""
    match = _STAMP.fullmatch(application_name)
    return match["name"] if match else application_name


def cut(name: str) -> str:
    """Return *name* cut to PostgreSQL's 63 bytes, never inside a character."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")
