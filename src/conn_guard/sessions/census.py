"""Counts sessions and slots, and words the notes about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conn_guard.sessions.policy import ANY_USER, Policy
from conn_guard.sessions.report import Slots
from conn_guard.sessions.session import CLIENT_BACKEND, REAPER_APPLICATION, Session


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many sessions the server, this database and each role may have; None is no limit."""

    server: int
    database: int | None
    roles: Mapping[str, int]


def notes(sessions: Sequence[Session], policy: Policy) -> list[str]:
    if policy.users:
        return []
    others = (each for each in sessions if each.application_name != REAPER_APPLICATION)
    if any(
        each.user == policy.login_role and (policy.any_database or each.database == policy.database)
        for each in others
    ):
        return []
    return [
        f"role {policy.login_role} has no other session here; name the application's role with"
        " --user"
    ]


def by_state(sessions: Sequence[Session]) -> dict[str, tuple[int, float]]:
    census: dict[str, tuple[int, float]] = {}
    for each in sessions:
        if each.backend_type == CLIENT_BACKEND and each.state is not None:
            count, oldest_seconds = census.get(each.state.value, (0, 0.0))
            census[each.state.value] = (
                count + 1,
                max(oldest_seconds, each.in_state_for.total_seconds()),
            )
    return census


def nearest_limit(sessions: Sequence[Session], policy: Policy, given: Limits) -> Slots:
    # A hidden row may be a parallel worker or a walsender, which take no slot: then the sum is an
    # upper bound.
    holders = [
        each
        for each in sessions
        if each.database and (each.hidden or each.backend_type == CLIENT_BACKEND)
    ]
    exact = not any(each.hidden for each in holders)
    limits = [Slots(len(holders), given.server, exact)]
    held_by = Counter(each.user for each in holders)
    roles = [name for name in policy.users if name != ANY_USER] or [policy.login_role]
    limits += [
        Slots(held_by[role], given.roles[role], exact) for role in roles if role in given.roles
    ]
    if given.database is not None:
        limits.append(
            Slots(sum(each.database == policy.database for each in holders), given.database, exact)
        )
    return max(limits, key=lambda each: each.percent)
