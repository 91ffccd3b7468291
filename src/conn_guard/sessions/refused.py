"""The advice for a login that failed: what helps at once, and what prevents it next time."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from conn_guard import pages

NO_SUPERUSER = "make the application's role NOSUPERUSER, because no limit binds a superuser"
RESERVE = "set reserved_connections and GRANT pg_use_reserved_connections to a reaper role"
LIMIT = (
    "set a CONNECTION LIMIT on the application's roles, or let idle_reaper --every keep its one"
    " session open"
)


def advice(
    said: str,
    *,
    roles: Sequence[str],
    aliases: Sequence[str],
    version_num: int | None,
    is_superuser: bool | None,
    command: str = "idle_reaper",
) -> str:
    """Return in sentences what helps after the server's answer *said* to a login.

    *roles* are those whose sessions were to be judged. *aliases* lead to other databases of the
    same server as other roles. *version_num* and *is_superuser* are None if no login succeeded
    before. *command* is how the reaper is typed.
    """
    # No translation changes these words, and PostgreSQL 16 and later say one of them.
    is_full = any(word in said for word in ("pg_use_reserved_connections", "SUPERUSER"))
    first = "Every slot is taken." if is_full else "Check HOST, PORT, USER and PASSWORD."
    now = "Now" if is_full else "If every slot is taken, now"
    lasting = _lasting(is_16=is_full, version_num=version_num, is_superuser=is_superuser)
    lasting = lasting.replace("idle_reaper", command)
    at_once = _at_once(command, roles, aliases, is_superuser=is_superuser)
    return (
        f"{first} {now}: {at_once}."
        f" To prevent it: {lasting}. More: {pages.address('how-to/no-slot-left.md')}"
    )


def _at_once(
    command: str, roles: Sequence[str], aliases: Sequence[str], *, is_superuser: bool | None
) -> str:
    users = " ".join(f"--user {shlex.quote(role)}" for role in roles)
    ways = [
        f"run {command} --database {shlex.quote(each)} {users} --any-database" for each in aliases
    ]
    if not is_superuser:  # a superuser that was refused has taken the superusers' slots as well
        ways.append(f"run {command} {users} with the superuser's DATABASE_URL")
    ways += [
        "kill -TERM one backend that ps shows as idle on the database's host",
        "restart one worker of the application",
    ]
    return "; or ".join(ways)


def _lasting(*, is_16: bool, version_num: int | None, is_superuser: bool | None) -> str:
    if is_superuser:
        return NO_SUPERUSER
    if version_num is not None:
        return RESERVE if version_num >= 160000 else LIMIT
    if is_16:
        return RESERVE
    return f"{NO_SUPERUSER}; from PostgreSQL 16 on, {RESERVE}; on 14 and 15, {LIMIT}"
