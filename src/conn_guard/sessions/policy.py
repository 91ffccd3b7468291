"""Judges which sessions to end: a table of reasons, of which the first that holds wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network, ip_address

from conn_guard.sessions.session import (
    CLIENT_BACKEND,
    IN_TRANSACTION,
    OWN_APPLICATIONS,
    LastStatement,
    Session,
    State,
)

Network = IPv4Network | IPv6Network
ANY_USER = "*"


class Verdict(Enum):
    """The judgement on a session; the value is the reason in reports and metrics."""

    REAP = "idle"
    # Not due: the session is in use, or not idle for long enough.
    ACTIVE = "active"
    TOO_YOUNG = "too_young"
    # Spared: the session is due, and one of these reasons keeps it.
    SELF = "self"
    REAPER = "reaper"
    BACKEND_TYPE = "backend_type"
    SUPERUSER = "superuser"
    PROTECTED_APPLICATION = "protected_application"
    EXCLUDED = "excluded"
    ADVISORY_LOCK = "advisory_lock"
    LISTEN = "listen"
    HOLDS_STATE = "holds_state"
    TEMP_TABLE = "temp_table"
    IDLE_IN_TRANSACTION = "idle_in_transaction"
    TRACK_ACTIVITIES_OFF = "track_activities_off"
    KEEP = "keep"
    MAX = "max"
    MOVED_ON = "moved_on"

    @property
    def spares(self) -> bool:
        """Whether this is a reason to spare a session that is due."""
        return self not in (Verdict.REAP, Verdict.ACTIVE, Verdict.TOO_YOUNG)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The sessions that the operator chose, and those to spare.

    *login_role* and *database* are those of the reaper's own session.
    """

    idle_for: timedelta
    idle_in_transaction_for: timedelta | None = None
    login_role: str = ""
    database: str = ""
    users: tuple[str, ...] = ()
    """Exact role names or a lone ``*``; empty: the login role."""
    any_database: bool = False
    applications: tuple[str, ...] = ()
    clients: tuple[Network, ...] = ()
    excluded_users: tuple[str, ...] = ()
    excluded_applications: tuple[str, ...] = ()
    excluded_clients: tuple[Network, ...] = ()
    protected_applications: tuple[str, ...] = ()
    keep: int = 0

    def names(self, session: Session) -> bool:
        """Return whether *session* is in scope by role, database and application_name alone.

        A role without grants sees these three of every session, and nothing else.
        """
        return (
            self._names_user(session.user)
            and (self.any_database or session.database == self.database)
            and (not self.applications or matches(session, self.applications))
        )

    def covers(self, session: Session) -> bool:
        """Return whether *session* is in scope."""
        return self.names(session) and (not self.clients or within(session.client, self.clients))

    def protects_superuser(self, session: Session) -> bool:
        """Return whether *session* is a superuser's, neither the login role's nor in ``users``."""
        return (
            session.is_superuser
            and session.user != self.login_role
            and session.user not in self.users
        )

    def excludes_name(self, session: Session) -> bool:
        """Return whether an exclusion matches the role or the application_name of *session*."""
        return session.user in self.excluded_users or matches(session, self.excluded_applications)

    def protects_application(self, session: Session) -> bool:
        """Return whether PROTECTED_APPLICATIONS matches *session*."""
        return matches(session, self.protected_applications)

    def might_reap(self, session: Session) -> bool:
        """Return whether *session* may be due, by role, database and application_name alone."""
        return (
            not session.is_self
            and session.user is not None
            and session.database is not None
            and self.names(session)
            and session.application_name not in OWN_APPLICATIONS
            and not self.protects_superuser(session)
            and not self.protects_application(session)
            and not self.excludes_name(session)
        )

    def _names_user(self, user: str | None) -> bool:
        if not self.users:
            return user == self.login_role
        return ANY_USER in self.users or user in self.users


def matches(session: Session, globs: Iterable[str]) -> bool:
    """Return whether one of *globs* matches the application_name, with or without its stamp.

    Matching is case-sensitive.
    """
    names = (session.application_name, session.application)
    return any(fnmatchcase(name, glob) for glob in globs for name in names)


def within(client: str | None, networks: Iterable[Network]) -> bool:
    """Return whether the address *client* is in one of *networks*; None is in none."""
    return client is not None and any(ip_address(client) in network for network in networks)


def judge(session: Session, policy: Policy) -> Verdict:
    """Return the verdict on *session*; the first reason to spare it wins."""
    for verdict, holds in _REASONS:
        if holds(session, policy):
            return verdict
    return Verdict.REAP if _is_idle(session) else Verdict.ACTIVE


def keep_recent(
    judged: Iterable[tuple[Session, Verdict]], keep: int
) -> list[tuple[Session, Verdict]]:
    """Return *judged* with the *keep* most recently used sessions of each application spared.

    Sessions are grouped by role and application. A session in use counts as the most recent.
    """
    judged = list(judged)
    if not keep:
        return judged
    kept: set[int] = set()
    groups: dict[tuple[str | None, str], list[Session]] = {}
    for session, _ in judged:
        if not session.is_self and session.backend_type == CLIENT_BACKEND:
            groups.setdefault((session.user, session.application), []).append(session)
    for group in groups.values():
        group.sort(key=lambda each: (each.state in _IDLE, each.in_state_for))
        kept.update(each.pid for each in group[:keep])
    return [
        (session, Verdict.KEEP if verdict is Verdict.REAP and session.pid in kept else verdict)
        for session, verdict in judged
    ]


_IDLE = (State.IDLE, *IN_TRANSACTION)


def _in_use(session: Session, _: Policy) -> bool:
    return session.state not in (*_IDLE, State.DISABLED) and not session.hidden


def _too_young(session: Session, policy: Policy) -> bool:
    threshold = policy.idle_for
    if session.state in IN_TRANSACTION and policy.idle_in_transaction_for is not None:
        threshold = policy.idle_in_transaction_for
    return session.state in _IDLE and session.in_state_for < threshold


def _is_idle(session: Session) -> bool:
    # A backend in state idle that has a transaction, or waits for anything but its client, has just
    # begun or ended a statement.
    if not session.waits_for_client:
        return False
    return session.state in IN_TRANSACTION or (
        session.state is State.IDLE and not session.in_transaction
    )


# The order matters: a session in use or too young is never counted as spared, except for the first
# three reasons, which hold whatever the session does.
_REASONS: tuple[tuple[Verdict, Callable[[Session, Policy], bool]], ...] = (
    (Verdict.SELF, lambda session, _: session.is_self),
    (Verdict.REAPER, lambda session, _: session.application_name in OWN_APPLICATIONS),
    (Verdict.BACKEND_TYPE, lambda session, _: session.backend_type not in (None, CLIENT_BACKEND)),
    (Verdict.ACTIVE, _in_use),
    (Verdict.TOO_YOUNG, _too_young),
    (Verdict.SUPERUSER, lambda session, policy: policy.protects_superuser(session)),
    (Verdict.PROTECTED_APPLICATION, lambda session, policy: policy.protects_application(session)),
    (
        Verdict.EXCLUDED,
        lambda session, policy: (
            policy.excludes_name(session) or within(session.client, policy.excluded_clients)
        ),
    ),
    (Verdict.TRACK_ACTIVITIES_OFF, lambda session, _: session.state is State.DISABLED),
    (
        Verdict.IDLE_IN_TRANSACTION,
        lambda session, policy: (
            session.state in IN_TRANSACTION and policy.idle_in_transaction_for is None
        ),
    ),
    (Verdict.ADVISORY_LOCK, lambda session, _: session.holds_advisory_lock),
    (Verdict.LISTEN, lambda session, _: session.last_statement is LastStatement.LISTEN),
    (Verdict.HOLDS_STATE, lambda session, _: session.last_statement is LastStatement.HOLDS_STATE),
    (Verdict.TEMP_TABLE, lambda session, _: session.holds_temp_table),
)
