"""The options that choose aliases and sessions, the same for idle_reaper and conn_report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.management.base import CommandParser

from conn_guard.conf import Settings
from conn_guard.management import arguments
from conn_guard.sessions.policy import Policy


def add_aliases(parser: CommandParser, *, every: str) -> None:
    """Add ``--database`` and ``--all-databases``; *every* is the help of the second."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--database",
        action="append",
        metavar="ALIAS",
        help="An alias of DATABASES. Default: default.",
    )
    which.add_argument("--all-databases", action="store_true", help=every)


def add_filters(parser: CommandParser) -> None:
    """Add the options that policy() reads."""
    add = parser.add_argument
    add(
        "--idle-for",
        metavar="DURATION",
        help="How long a session must be idle: 90s, 10m, 2h. Default: REAP_IDLE_FOR.",
    )
    add(
        "--idle-in-transaction-for",
        metavar="DURATION",
        help=(
            "End sessions that are idle in a transaction for this long, too. Default:"
            " REAP_IDLE_IN_TRANSACTION_FOR; None spares them."
        ),
    )
    add(
        "--application-name",
        action="append",
        metavar="GLOB",
        help="Only sessions with this application_name.",
    )
    add(
        "--exclude-application-name",
        action="append",
        metavar="GLOB",
        help="Spare sessions with this application_name.",
    )
    add(
        "--user",
        action="append",
        metavar="ROLE",
        help="Sessions of this role instead of the login role's; '*' means every role.",
    )
    add("--exclude-user", action="append", metavar="ROLE", help="Spare sessions of this role.")
    add(
        "--client",
        action="append",
        metavar="CIDR",
        help="Only sessions from this network or address.",
    )
    add(
        "--exclude-client",
        action="append",
        metavar="CIDR",
        help="Spare sessions from this network or address, for example a pooler's.",
    )
    add("--any-database", action="store_true", help="Sessions in every database of the server.")
    add(
        "--keep",
        metavar="N",
        help="Spare the N most recently used sessions of each role and application.",
    )


def policy(options: Mapping[str, Any], settings: Settings) -> Policy:
    """Return the sessions that *options* choose; raise CommandError for a wrong option."""
    return Policy(
        idle_for=arguments.duration(options, "idle_for") or settings.reap_idle_for,
        idle_in_transaction_for=(
            arguments.duration(options, "idle_in_transaction_for")
            or settings.reap_idle_in_transaction_for
        ),
        users=arguments.roles(options, "user"),
        any_database=options["any_database"],
        applications=arguments.texts(options["application_name"]),
        clients=arguments.networks(options, "client"),
        excluded_users=arguments.texts(options["exclude_user"]),
        excluded_applications=arguments.texts(options["exclude_application_name"]),
        excluded_clients=arguments.networks(options, "exclude_client"),
        protected_applications=settings.protected_applications,
        keep=arguments.number(options, "keep") or 0,
    )
