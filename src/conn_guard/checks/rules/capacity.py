"""Rules about the connections that a deployment may open and the slots that its server has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conn_guard.checks.project import Alias
from conn_guard.checks.registry import Found, Rule
from conn_guard.text import shown

if TYPE_CHECKING:  # a process that asks no server needs no facts
    from conn_guard.checks.facts import ServerFacts
    from conn_guard.conf import Budget

# The slots that an application without superuser can't take. Source: pg_settings of PostgreSQL 14
# to 18, and of RDS.
RESERVED = (
    "superuser_reserved_connections",
    "reserved_connections",
    "rds.rds_superuser_reserved_connections",
)


@dataclass(frozen=True)
class CapacityEstimate:
    """The connections that aliases may open at once, the limit, and the sum line by line.

    *can_pool* tells whether a pool would bound any of the aliases.
    """

    needed: int
    limit: int
    text: str
    can_pool: bool

    @property
    def share(self) -> float:
        """The share of the limit that would be used: 1 is all of it."""
        return self.needed / self.limit if self.limit > 0 else float("inf")


def budget_tight(every: tuple[ServerFacts, ...]) -> Iterator[Found]:
    for estimate in estimates(every):
        if 0.8 < estimate.share <= 1:
            yield (
                estimate.text,
                (
                    "Leave a fifth of the slots free"
                    + (", or bound the sum with OPTIONS['pool']." if estimate.can_pool else ".")
                ),
            )


def budget_exceeded(every: tuple[ServerFacts, ...]) -> Iterator[Found]:
    for estimate in estimates(every):
        if estimate.share > 1:
            yield (
                estimate.text,
                (
                    "Run fewer processes or threads, bound the sum with OPTIONS['pool'], or raise"
                    " the limit."
                    if estimate.can_pool
                    else "Run fewer processes or threads, or raise the limit."
                ),
            )


def estimates(every: Iterable[ServerFacts]) -> Iterator[CapacityEstimate]:
    """Yield, for each server, the estimate that comes nearest to its limit.

    Yields nothing without CONN_GUARD["BUDGET"], and nothing for a pooler that may share its
    sessions: there the pooler's own limits decide.
    """
    told: set[str] = set()
    for facts in every:
        conn_guard = facts.alias.project.conn_guard
        mode = conn_guard.pooler.get(str(facts.alias.name))
        if conn_guard.budget is None or mode == "transaction" or (facts.is_pooled and mode is None):
            continue
        nearest = max(_candidates(facts, conn_guard.budget), key=lambda each: each.share)
        if nearest.text not in told:
            told.add(nearest.text)
            yield nearest


def _candidates(facts: ServerFacts, budget: Budget) -> Iterator[CapacityEstimate]:
    """Yield the estimates for the server, and for the role and the database that have a limit."""
    there = [
        alias
        for alias in facts.alias.project.aliases
        if alias.engine.may_be_postgres and _is_same(alias, facts.alias)
    ]
    most = facts.settings["max_connections"]
    reserved = {name: facts.settings[name] for name in RESERVED if facts.settings.get(name)}
    room = " - ".join(
        [f"max_connections {most}", *(f"{name} {count}" for name, count in reserved.items())]
    )
    slots = most - sum(reserved.values())
    yield _estimate(there, budget, "the server", slots, f"{room} = {slots}" if reserved else room)
    for key, owner, limit in (
        ("USER", f"the role {shown(facts.role)}", facts.role_limit),
        ("NAME", f"the database {shown(facts.database)}", facts.database_limit),
    ):
        if limit is not None:
            of_owner = [alias for alias in there if _is_same(alias, facts.alias, key)]
            yield _estimate(of_owner, budget, owner, limit, f"its CONNECTION LIMIT {limit}")


def _is_same(one: Alias, other: Alias, *keys: str) -> bool:
    return one.addresses == other.addresses and all(
        one.values.get(key) == other.values.get(key) for key in keys
    )


def _estimate(
    aliases: list[Alias], budget: Budget, owner: str, limit: int, room: str
) -> CapacityEstimate:
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
            f"{when} the number of threads is not a limit: every request that runs at once may"
            " hold a connection; a pool would be a limit."
        )
    share = f"{needed / limit:.0%}" if limit > 0 else "all"
    head = f"CONN_GUARD['BUDGET'] comes to {needed} of the {limit} slots of {owner} ({share}):"
    can_pool = any(alias.can_pool for alias in unbounded)
    return CapacityEstimate(needed, limit, "\n    ".join([head, *lines]), can_pool)


def _per_process(alias: Alias, budget: Budget) -> tuple[int, str]:
    """Return the connections that a process may hold for *alias*, and the reason."""
    if not alias.pools:
        return budget.threads, f"{budget.threads} threads"
    size = alias.pool_sizes[1]
    return (
        (size, f"{size} connections of its pool")
        if isinstance(size, int)
        else (0, "a pool of no known size")
    )


RULES = (
    Rule(
        id="W303",
        slug="budget-tight",
        subject="capacity",
        why=(
            "A budget above 80 % of the slots leaves no room for a deployment, a shell or a leak."
            ' The check needs `CONN_GUARD["BUDGET"]`.'
        ),
        django=(
            "Django opens one connection per thread and alias and does not ask whether a slot is"
            " free."
        ),
        cure=(
            "Run fewer processes or threads, bound them with a pool, or raise `max_connections`,"
            " which needs a restart of the server. A rolling deployment runs old and new processes"
            " at once: leave room for both."
        ),
        find=budget_tight,
    ),
    Rule(
        id="W304",
        slug="budget-exceeded",
        subject="capacity",
        why="A budget above the slots is an outage at the first busy hour.",
        django=(
            "`FATAL: sorry, too many clients already`, or `too many connections for role`, for each"
            " connection beyond the limit."
        ),
        cure=(
            "Run fewer processes or threads, bound them with a pool, or raise the limit that the"
            " message names. `max_connections` and `reserved_connections` change with a restart of"
            " the server; `CONNECTION LIMIT` changes at once."
        ),
        find=budget_exceeded,
    ),
)
