"""The scope of a run: whose sessions are judged, and the rights that this needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from django.db import connections

from conn_guard.sessions.login import Identity, OwnSession
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.server import Server
from conn_guard.sessions.session import Session
from conn_guard.text import sql_name


def scope(session: OwnSession, alias: str, policy: Policy) -> Policy:
    """Return *policy* with the role and the database of *alias*, for which *session* logged in."""
    policy = replace(policy, login_role=session.login_role, database=session.database)
    if session.alias != alias and not policy.users:
        # Logged in by another alias: the sessions to judge are still those of this one's role.
        policy = replace(policy, users=(connections.settings[alias]["USER"],))
    return policy


def identity(session: OwnSession, alias: str) -> Identity:
    """Return the server, database and role of *alias*, for which *session* logged in."""
    if session.alias == alias:
        return session.identity
    return replace(session.identity, login_role=connections.settings[alias]["USER"])


def missing_rights(sessions: Sequence[Session], policy: Policy) -> tuple[str, list[str]]:
    """Return what the login role may not do with the *sessions* in scope, and the roles it lacks.

    The text is empty if it may do everything.
    """
    candidates = [each for each in sessions if policy.might_reap(each)]
    hidden = sum(each.hidden for each in candidates)
    forbidden = sum(not each.may_signal for each in candidates)
    faults = [f"may not see {hidden}"] * bool(hidden) + [f"may not signal {forbidden}"] * bool(
        forbidden
    )
    roles = ["pg_read_all_stats"] * bool(hidden) + ["pg_signal_backend"] * bool(forbidden)
    return " and ".join(faults), roles


def grant(server: Server, roles: Sequence[str]) -> str:
    """Return the SQL that grants *roles* to the login role so that it can use their rights."""
    role = sql_name(server.session.login_role)
    granted = f"GRANT {', '.join(roles)} TO {role}"
    if server.inherits_grants():
        return f"{granted};"
    # From PostgreSQL 16 on, each grant says whether it is inherited; before, the role does.
    if server.session.version_num >= 160000:
        return f"{granted} WITH INHERIT TRUE;"
    return f"ALTER ROLE {role} INHERIT; {granted};"
