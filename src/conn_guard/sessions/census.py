"""Counts sessions and slots, and writes the notes about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from conn_guard.sessions.policy import ANY_USER, Policy, Verdict, judge, keep_recent
from conn_guard.sessions.report import Slots
from conn_guard.sessions.session import (
    CLIENT_BACKEND,
    OWN_APPLICATIONS,
    REPORT_APPLICATION,
    Session,
)

SHORTER = {
    "1d": timedelta(days=1),
    "12h": timedelta(hours=12),
    "6h": timedelta(hours=6),
    "2h": timedelta(hours=2),
    "1h": timedelta(hours=1),
    "30m": timedelta(minutes=30),
    "10m": timedelta(minutes=10),
    "5m": timedelta(minutes=5),
    "2m": timedelta(minutes=2),
    "1m": timedelta(minutes=1),
    "30s": timedelta(seconds=30),
}
"""Thresholds that a note may recommend, the longest first; below 30 s the command warns."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most sessions that the server, our database and each role may have; None: no limit."""

    server: int
    database: int | None
    roles: Mapping[str, int]


def judge_all(sessions: Sequence[Session], policy: Policy) -> list[tuple[Session, Verdict]]:
    """Return the sessions in scope of *policy*, each with its verdict."""
    judged = [
        (each, judge(each, policy))
        for each in sessions
        if policy.covers(each) and each.application_name != REPORT_APPLICATION
    ]
    return keep_recent(judged, policy.keep)


def by_state(sessions: Sequence[Session]) -> dict[str, tuple[int, float]]:
    """Return for each state the number of client sessions and the longest seconds in it."""
    census: dict[str, tuple[int, float]] = {}
    for each in sessions:
        if (
            each.backend_type == CLIENT_BACKEND
            and each.state is not None
            and each.application_name != REPORT_APPLICATION
        ):
            count, longest_seconds = census.get(each.state.value, (0, 0.0))
            census[each.state.value] = (
                count + 1,
                max(longest_seconds, each.in_state_for.total_seconds()),
            )
    return census


def nearest_limit(sessions: Sequence[Session], policy: Policy, limits: Limits) -> Slots:
    """Return the fullest of *limits*: the server's, our database's, or that of a role in scope."""
    # A hidden row may be a parallel worker or a walsender, which take no slot: then the number is
    # an upper bound.
    holders = [
        each
        for each in sessions
        if each.database and (each.hidden or each.backend_type == CLIENT_BACKEND)
    ]
    exact = not any(each.hidden for each in holders)
    slots = [Slots(len(holders), limits.server, exact)]
    held_by = Counter(each.user for each in holders)
    roles = [name for name in policy.users if name != ANY_USER] or [policy.login_role]
    slots += [
        Slots(held_by[role], limits.roles[role], exact) for role in roles if role in limits.roles
    ]
    if limits.database is not None:
        here = sum(each.database == policy.database for each in holders)
        slots.append(Slots(here, limits.database, exact))
    return max(slots, key=lambda each: each.percent)


def note_no_session(sessions: Sequence[Session], policy: Policy) -> list[str]:
    """Return a note if the login role has no session but the reaper's, and no role is named."""
    if policy.users or any(
        each.user == policy.login_role
        and (policy.any_database or each.database == policy.database)
        and each.application_name not in OWN_APPLICATIONS
        for each in sessions
    ):
        return []
    return [
        f"role {policy.login_role} has no other session here; name the application's role with"
        " --user"
    ]


def note_none_due(sessions: Sequence[Session], policy: Policy, at_most: int | None) -> list[str]:
    """Return a note that names the threshold that would end idle sessions; [] if none is idle.

    It is the longest of SHORTER that ends as many sessions as the shortest of them.
    """
    if not any(each.is_idle and policy.covers(each) for each in sessions):
        return []
    best, would_end = "", 0
    for option, idle_for in SHORTER.items():
        if idle_for < policy.idle_for:
            judged = judge_all(sessions, replace(policy, idle_for=idle_for))
            count = sum(verdict is Verdict.REAP for _, verdict in judged)
            if count > would_end:
                best, would_end = option, count
    if at_most is not None:
        would_end = min(would_end, at_most)
    if not would_end:
        return ["none is due yet"]
    return [f"none is due yet; --idle-for {best} would end {would_end}"]
