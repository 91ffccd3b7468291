"""How many connections a deployment may open and how many there is room for: this room holds the
sum and its wording.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conn_guard.checks.project import Alias
from conn_guard.text import shown

if TYPE_CHECKING:
    from conn_guard.checks.server import Seen
    from conn_guard.conf import Budget

# What the server keeps back from an application. Source: pg_settings of PostgreSQL 14 to 18, and of
# RDS.
RESERVED = (
    "superuser_reserved_connections",
    "reserved_connections",
    "rds.rds_superuser_reserved_connections",
)


@dataclass(frozen=True)
class Sum:
    """What the aliases of one server, role or database may open at once, held against its limit."""

    needed: int
    limit: int
    text: str

    @property
    def share(self) -> float:
        """How full the limit would be: 1 is full."""
        return self.needed / self.limit if self.limit > 0 else float("inf")


def sums(every: Iterable[Seen]) -> Iterator[Sum]:
    """Yield, for each server that was seen, the sum that comes nearest to its limit.

    Nothing without CONN_GUARD["BUDGET"], and nothing through a pooler that may share its sessions:
    there the pooler's own limits decide."""
    told: set[str] = set()
    for seen in every:
        budget = seen.alias.project.conn_guard.budget
        mode = seen.alias.project.conn_guard.pooler.get(str(seen.alias.name))
        if budget is None or mode == "transaction" or (seen.session.is_pooled and mode is None):
            continue
        nearest = max(_candidates(seen, budget), key=lambda each: each.share)
        if nearest.text not in told:
            told.add(nearest.text)
            yield nearest


def _candidates(seen: Seen, budget: Budget) -> Iterator[Sum]:
    """Yield the sums against the limits of the server, the role and the database, as far as there
    are such.
    """
    session = seen.session
    there = [
        alias
        for alias in seen.alias.project.aliases
        if alias.may_be_postgres and _is_same(alias, seen.alias)
    ]
    most = session.settings["max_connections"]
    reserved = {name: session.settings[name] for name in RESERVED if session.settings.get(name)}
    room = " - ".join(
        [f"max_connections {most}", *(f"{name} {count}" for name, count in reserved.items())]
    )
    slots = most - sum(reserved.values())
    yield _sum(there, budget, "the server", slots, f"{room} = {slots}" if reserved else room)
    if session.role_limit is not None:
        of_role = [alias for alias in there if _is_same(alias, seen.alias, "USER")]
        limit = session.role_limit
        yield _sum(
            of_role,
            budget,
            f"the role {shown(session.role)}",
            limit,
            f"its CONNECTION LIMIT {limit}",
        )
    if session.database_limit is not None:
        of_database = [alias for alias in there if _is_same(alias, seen.alias, "NAME")]
        limit = session.database_limit
        yield _sum(
            of_database,
            budget,
            f"the database {shown(session.database)}",
            limit,
            f"its CONNECTION LIMIT {limit}",
        )


def _is_same(one: Alias, other: Alias, *keys: str) -> bool:
    return one.addresses == other.addresses and all(
        one.values.get(key) == other.values.get(key) for key in keys
    )


def _sum(aliases: list[Alias], budget: Budget, owner: str, limit: int, room: str) -> Sum:
    lines, needed = [], 0
    for alias in aliases:
        per_process, words = _per_process(alias, budget)
        needed += budget.processes * per_process
        lines.append(
            f"{alias}: {budget.processes} processes x {words} = {budget.processes * per_process}"
        )
    if budget.other:
        needed += budget.other
        lines.append(f"other: {budget.other}")
    lines.append(f"room: {room}")
    unbounded = [alias for alias in aliases if not alias.pools]
    served_by = aliases[0].project.served_by if aliases else None
    if unbounded and served_by is not None:
        when = "Under ASGI" if served_by == "ASGI" else "If an ASGI server serves the project,"
        lines.append(
            f"{when} threads bound nothing: every request that runs at once may hold a connection;"
            " a pool would."
        )
    share = f"{needed / limit:.0%}" if limit > 0 else "all"
    head = f"CONN_GUARD['BUDGET'] comes to {needed} of the {limit} slots of {owner} ({share}):"
    return Sum(needed, limit, "\n    ".join([head, *lines]))


def _per_process(alias: Alias, budget: Budget) -> tuple[int, str]:
    """Return how many connections a process may hold for *alias*, and why."""
    if not alias.pools:
        return budget.threads, f"{budget.threads} threads"
    size = alias.pool_sizes[1]
    return (
        (size, f"{size} connections of its pool")
        if isinstance(size, int)
        else (0, "a pool of no known size")
    )
