"""Rules about poolers between the project and its server.

Source: each fact about poolers was measured on PgBouncer 1.18.
"""

from __future__ import annotations

from collections.abc import Iterator

from conn_guard.checks.project import Alias
from conn_guard.checks.registry import Found, Rule
from conn_guard.text import shown


def cursors_txn_pooler(alias: Alias) -> Iterator[Found]:
    if alias.pooler and alias.pooler[0] == "transaction" and not alias.cursors_disabled:
        yield (
            (
                f"{alias} goes through a pooler in transaction mode ({alias.pooler[1]}) with"
                " server-side cursors."
            ),
            "Write DISABLE_SERVER_SIDE_CURSORS = True.",
        )


def pooler_suspected(alias: Alias) -> Iterator[Found]:
    if alias.pooler and alias.pooler[0] == "unknown" and not alias.cursors_disabled:
        yield (
            (
                f"{alias} seems to go through a pooler ({alias.pooler[1]}); the settings don't show"
                " its mode."
            ),
            (
                f"Declare it: CONN_GUARD['POOLER'] = {{{shown(alias.name)}: \"session\"}} or"
                ' "transaction".'
            ),
        )


def tenants_pooler(alias: Alias) -> Iterator[Found]:
    if alias.engine.has_tenants and alias.pooler and alias.pooler[0] != "session":
        yield (
            (
                f"{alias} sets the tenant's schema for the session and goes through a pooler"
                f" ({alias.pooler[1]})."
            ),
            (
                f"Use session mode and declare it: CONN_GUARD['POOLER'] = {{{shown(alias.name)}:"
                ' "session"}.'
            ),
        )


def pooler_startup_options(alias: Alias) -> Iterator[Found]:
    # --cluster= is an address, not a setting.
    asked = [name for name in alias.startup_settings if name != "cluster"]
    if asked and alias.pooler:
        yield (
            (
                f"{alias}['OPTIONS']['options'] sets {', '.join(asked)} at login and goes through"
                f" a pooler ({alias.pooler[1]})."
            ),
            f"Set it on the server: ALTER ROLE ... SET {asked[0]} = ...",
        )


def prepared_pooler(alias: Alias) -> Iterator[Found]:
    threshold = alias.options.get("prepare_threshold")
    if (
        threshold is not None
        and alias.pooler
        and alias.pooler[0] != "session"
        and alias.project.driver != "psycopg2"
    ):
        # Django's own cursor binds on the client, where psycopg prepares nothing.
        binds = alias.options.get("server_side_binding") is True
        prepares = binds or alias.options.get("cursor_factory") is not None
        yield (
            (
                f"{alias}['OPTIONS']['prepare_threshold'] is {shown(threshold)} and goes through a"
                f" pooler ({alias.pooler[1]})"
                + ("." if prepares else "; requests fail once server_side_binding is True.")
            ),
            "Take it out of OPTIONS, or write None.",
        )


RULES = (
    Rule(
        id="W126",
        slug="cursors-txn-pooler",
        subject="alias",
        why=(
            "In transaction mode a pooler gives the server session to another client at each"
            " commit, and a server-side cursor with it."
        ),
        django=(
            "`.iterator()` outside a transaction declares a cursor on one server session and"
            " fetches from another: `cursor does not exist` in 10 of 10 runs, and in 0 of 10 with"
            " the cursors disabled."
        ),
        cure="Write `DISABLE_SERVER_SIDE_CURSORS = True`.",
        find=cursors_txn_pooler,
    ),
    Rule(
        id="I127",
        slug="pooler-suspected",
        subject="alias",
        why="A host or port that poolers usually have doesn't show the pooler's mode.",
        django=(
            "In transaction mode server-side cursors fail, as W126 describes. In session mode they"
            " work."
        ),
        cure=(
            'Declare the mode: `CONN_GUARD = {"POOLER": {"default": "session"}}`, or'
            ' `"transaction"`. `DISABLE_SERVER_SIDE_CURSORS = True` is right in both.'
        ),
        find=pooler_suspected,
    ),
    Rule(
        id="W128",
        slug="tenants-pooler",
        subject="alias",
        why="A schema per tenant and a pooler in transaction mode mix up tenants.",
        django=(
            "The tenant's `search_path` is a setting of the server session. In transaction mode the"
            " next client gets that session, and reads and writes another tenant's rows."
        ),
        cure='Use session mode and declare it: `CONN_GUARD = {"POOLER": {"default": "session"}}`.',
        find=tenants_pooler,
    ),
    Rule(
        id="W129",
        slug="pooler-startup-options",
        subject="alias",
        why="OPTIONS['options'] asks the server for settings at login, and a pooler refuses that.",
        django=(
            "PgBouncer refuses the login (`unsupported startup parameter: options`) in both modes."
            " With `ignore_startup_parameters` it drops the parameter, and the setting is silently"
            " not in force."
        ),
        cure="Set it on the server: `ALTER ROLE app SET statement_timeout = '5s'`.",
        find=pooler_startup_options,
    ),
    Rule(
        id="W130",
        slug="prepared-pooler",
        subject="alias",
        why=(
            "A prepared statement belongs to the server session, which a pooler in transaction mode"
            " gives to another client."
        ),
        django=(
            "With `server_side_binding` psycopg prepares statements on one server session and runs"
            " them on another: 76 of 180 failed with 1, and 0 with None. Without it Django's"
            " cursors prepare nothing, whatever the threshold."
        ),
        cure=(
            "Remove `prepare_threshold`; Django's own value is None. PgBouncer from 1.21 on tracks"
            " prepared statements: silence this check there."
        ),
        find=prepared_pooler,
    ),
)
