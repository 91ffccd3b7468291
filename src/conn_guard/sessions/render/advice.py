"""The SQL that makes the server end idle sessions itself, for ``--advise``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

from conn_guard.sessions.policy import ANY_USER, Policy
from conn_guard.sessions.session import OWN_APPLICATIONS, STATEMENT_BYTES
from conn_guard.text import sql_name

LONGEST_TIMEOUT = timedelta(milliseconds=2**31 - 1)
"""The longest timeout that a setting takes. Source: max_val of the two settings in pg_settings."""


def render_advice(policy: Policy) -> list[str]:
    """Return the SQL by which the server does the work of *policy*, and when not to use it."""
    roles = (
        ["ALL"]
        if ANY_USER in policy.users
        else [sql_name(role) for role in policy.users or (policy.login_role,)]
    )
    where = "" if policy.any_database else f" IN DATABASE {sql_name(policy.database)}"
    timeouts = {"idle_session_timeout": policy.idle_for}
    if policy.idle_in_transaction_for is not None:
        timeouts["idle_in_transaction_session_timeout"] = policy.idle_in_transaction_for
    settings = [
        f"ALTER ROLE {role}{where} SET {name} = '{_milliseconds(timeout)}ms';"
        for role in roles
        for name, timeout in timeouts.items()
        if timeout <= LONGEST_TIMEOUT
    ] + [
        f"-- {name} takes at most 24 days: {timeout.days} days need the procedure below."
        for name, timeout in timeouts.items()
        if timeout > LONGEST_TIMEOUT
    ]
    return [
        "-- The server can end idle sessions itself, without a race and without a reaper's slot:",
        *settings,
        "-- This applies to sessions that log in from now on. Don't use it where these roles",
        "--   LISTEN, or keep advisory locks or temporary tables: no session is spared;",
        "--   connect through a pooler, or a pool that keeps connections longer: set the pool's",
        "--   own limit (PgBouncer: server_idle_timeout);",
        "--   have a longer CONN_MAX_AGE without CONN_HEALTH_CHECKS: requests would fail on a",
        "--   closed connection.",
    ]


_PROCEDURE = """\
CREATE OR REPLACE PROCEDURE conn_guard_reap(
    idle_for interval DEFAULT {idle_for}, idle_in_transaction_for interval DEFAULT {in_transaction}
) LANGUAGE plpgsql AS {tag}
DECLARE
    victim record;
    is_signalled boolean;
    signalled int := 0;
BEGIN
    SET LOCAL search_path = pg_catalog, pg_temp;
    IF EXISTS (
        SELECT FROM pg_stat_activity AS a
        LEFT JOIN pg_roles AS r ON r.oid = a.usesysid,
        regexp_replace(coalesce(a.application_name, ''), {stamp}, '\\1') AS bare
        WHERE {judged}
          AND (a.backend_type IS NULL OR NOT r.rolsuper AND NOT pg_has_role(a.usesysid, 'USAGE')
               AND NOT pg_has_role('pg_signal_backend', 'USAGE'))
    ) THEN
        RAISE EXCEPTION '% may not see or signal sessions in scope', session_user
        USING HINT = 'GRANT pg_read_all_stats, pg_signal_backend TO ' || quote_ident(session_user);
    END IF;
    FOR victim IN
        SELECT * FROM (
            SELECT a.*, said, row_number() OVER (
                PARTITION BY a.usename, bare
                ORDER BY a.state LIKE 'idle%' AND a.state IS NOT NULL, a.state_change DESC
            ) AS recent, {judged} AS is_judged
            FROM pg_stat_activity AS a
            LEFT JOIN pg_roles AS r ON r.oid = a.usesysid,
            regexp_replace(coalesce(a.application_name, ''), {stamp}, '\\1') AS bare,
            encode({statement}, 'escape') AS said
            WHERE {covered} AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
        ) AS a
        WHERE a.is_judged AND a.recent > {keep}
          AND a.wait_event_type = 'Client' AND a.wait_event = 'ClientRead'
          AND (a.state = 'idle' AND clock_timestamp() - a.state_change >= idle_for
               AND a.xact_start IS NULL AND a.backend_xid IS NULL AND a.backend_xmin IS NULL
               OR a.state LIKE 'idle in transaction%'
               AND clock_timestamp() - a.state_change >= idle_in_transaction_for)
          AND a.pid NOT IN (SELECT l.pid FROM pg_locks AS l
                            WHERE l.locktype = 'advisory' AND l.granted AND l.pid IS NOT NULL)
{temp_tables}          AND NOT (a.said ~* 'listen|conn_guard:holds-state' AND (
              a.said ~* {listen} OR a.said ~ {holds_state} OR regexp_replace(
                  regexp_replace(a.said, {comment}, ' ', 'g'), {comment}, ' ', 'g') ~* {listen}))
        ORDER BY a.state_change, a.pid
    LOOP
        COMMIT;  -- a new transaction for each session: within one, the server checks old rows
        SET LOCAL search_path = pg_catalog, pg_temp;
        SELECT pg_terminate_backend(a.pid) INTO is_signalled
        FROM pg_stat_get_activity(victim.pid) AS a
        WHERE a.backend_type = 'client backend'
          AND a.backend_start = victim.backend_start
          AND a.state_change = victim.state_change
          AND a.state = victim.state
          AND (a.state <> 'idle' OR a.xact_start IS NULL AND a.backend_xid IS NULL
               AND a.backend_xmin IS NULL)
          AND a.wait_event_type = 'Client' AND a.wait_event = 'ClientRead';
        signalled := signalled + coalesce(is_signalled, false)::int;
    END LOOP;
    RAISE NOTICE '% sessions signalled', signalled;
END
{tag};"""

_TEMP_TABLES = """\
          AND a.pid NOT IN (SELECT pg_stat_get_backend_pid(b)
                            FROM pg_stat_get_backend_idset() AS b
                            JOIN pg_namespace AS n ON n.nspname = 'pg_temp_' || b
                            JOIN pg_class AS c ON c.relnamespace = n.oid
                                              AND c.relpersistence = 't')
"""

# The patterns of conn_guard.sessions.session and .stamp, as PostgreSQL writes them.
_STAMP = r"^(.+?):[1-9][0-9]{0,9}(?::.*)?$"
_COMMENT = r"/\*(?:[^*/]|\*(?!/)|/(?!\*))*\*/"
_COMMENTS = rf"(?:\s|--[^\n]*(?:\n|$)|{_COMMENT})*"
_LISTEN = rf"(?:^|;){_COMMENTS}listen\y"
_HOLDS_STATE = rf"^{_COMMENTS}/\* conn_guard:holds-state \*/"


def render_procedure(policy: Policy, *, version_num: int) -> list[str]:
    """Return the SQL of a procedure that reaps inside the server, and how pg_cron calls it.

    *version_num* is the server's: before PostgreSQL 16, temporary tables can't be seen.
    """
    covered = list(_covered(policy))
    sql = _PROCEDURE.format(
        idle_for=_interval(policy.idle_for),
        in_transaction=_interval(policy.idle_in_transaction_for),
        tag="{tag}",
        stamp=_text(_STAMP),
        covered=" AND ".join(covered),
        judged=" AND ".join([*covered, *_spared(policy)]),
        keep=policy.keep,
        temp_tables=_TEMP_TABLES if version_num >= 160000 else "",
        listen=_text(_LISTEN),
        holds_state=_text(_HOLDS_STATE),
        comment=_text(_COMMENT),
        statement=STATEMENT_BYTES,
    )
    tag = "$conn_guard$"
    while tag in sql:  # a role may have any name
        tag = f"{tag[:-1]}_$"
    return [
        "-- Or the same reaper inside the server, which spares what idle_reaper spares:",
        *sql.replace("{tag}", tag).splitlines(),
        "-- CALL conn_guard_reap(); ends the sessions that --dry-run names. With pg_cron, where",
        "-- cron.database_name is this database:",
        "--   SELECT cron.schedule('conn_guard_reap', '*/5 * * * *', 'CALL conn_guard_reap()');",
        "-- Else call cron.schedule_in_database there, with this database's name as the fourth",
        "-- argument. It takes no lock, writes no report and knows neither --max nor --when-above.",
    ]


def _covered(policy: Policy) -> Iterator[str]:
    """Yield the conditions of Policy.covers()."""
    if ANY_USER not in policy.users:
        yield f"a.usename::text = ANY ({_texts(policy.users or (policy.login_role,))})"
    if not policy.any_database:
        yield f"a.datname::text = {_text(policy.database)}"
    if policy.applications:
        yield _matches(policy.applications)
    if policy.clients:
        yield f"a.client_addr <<= ANY ({_texts(map(str, policy.clients))}::inet[])"
    yield f"a.application_name <> ALL ({_texts(OWN_APPLICATIONS)})"
    yield "a.datname IS NOT NULL"


def _spared(policy: Policy) -> Iterator[str]:
    """Yield the conditions under which no exclusion and no protection by name holds."""
    yield (
        "(NOT coalesce(r.rolsuper, false) OR a.usename::text ="
        f" ANY ({_texts((policy.login_role, *policy.users))}))"
    )
    if globs := (*policy.protected_applications, *policy.excluded_applications):
        yield f"NOT {_matches(globs)}"
    if policy.excluded_users:
        yield f"a.usename::text <> ALL ({_texts(policy.excluded_users)})"
    if policy.excluded_clients:
        networks = _texts(map(str, policy.excluded_clients))
        yield f"NOT coalesce(a.client_addr <<= ANY ({networks}::inet[]), false)"


def _matches(globs: Iterable[str]) -> str:
    pattern = _text(f"^(?:{'|'.join(map(_pattern, globs))})$")
    return f"(coalesce(a.application_name, '') ~ {pattern} OR bare ~ {pattern})"


def _pattern(glob: str) -> str:
    """Return the regular expression of PostgreSQL that matches as fnmatchcase() does."""
    found, at = "", 0
    while at < len(glob):
        each, at = glob[at], at + 1
        if each == "*":
            found += ".*"
        elif each == "?":
            found += "."
        elif each == "[" and (end := glob.find("]", at + 1 + (glob[at : at + 1] == "!"))) > 0:
            members, at = glob[at:end], end + 1
            is_not = members.startswith("!")
            escaped = "".join(
                each if each.isalnum() or each == "-" else f"\\{each}" for each in members[is_not:]
            )
            found += f"[{'^' * is_not}{escaped}]"
        else:
            found += each if each.isalnum() else f"\\{each}"
    return found


def _milliseconds(timeout: timedelta) -> int:
    return max(1, round(timeout.total_seconds() * 1000))  # 0 would switch the setting off


def _interval(duration: timedelta | None) -> str:
    return "NULL" if duration is None else f"'{duration.total_seconds():f} s'"


def _texts(values: Iterable[str]) -> str:
    return f"ARRAY[{', '.join(map(_text, values))}]::text[]"


def _text(value: str) -> str:
    """Return *value* as a literal of SQL without a character that a terminal would obey."""
    quoted = value.replace("\\", "\\\\").replace("'", "''")
    printed = "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in quoted)
    return f"E'{printed}'" if "\\" in printed else f"'{printed}'"
