"""Reads from the text of a statement which state it leaves behind in its session."""

from __future__ import annotations

import functools
import re
from enum import Enum


class Leaves(Enum):
    """The kinds of state that a statement can leave in its session."""

    NOTHING = "nothing"
    UNKNOWN = "unknown"
    """The statement calls a function that may have changed a role or a setting."""
    TRANSACTION = "transaction"
    """A transaction that only the server knows of, begun by a raw BEGIN."""
    STATE = "state"
    UNLISTED_STATE = "unlisted state"
    """A custom setting such as ``app.tenant``, which no query can list."""


# A text with this many statements counts as state without being read: it is a script.
_MANY_STATEMENTS = 50

# A longer text is an import or a bulk insert. Caching it costs more than reading it again.
KEPT_CHARACTERS = 4000

_OPENS = re.compile(
    r"""(?P<comment>--[^\n]*)
    |(?P<block>/\*)
    |(?P<escaped>\be'(?:[^'\\]|''|\\.)*')
    |(?P<text>'(?:[^']|'')*')
    |(?P<dollar>\$(?:[^\W\d]\w*)?\$)
    |(?P<name>"(?:[^"]|"")*")
    |(?P<unclosed>['"])""",
    re.VERBOSE | re.DOTALL,
)
_BLOCK = re.compile(r"/\*|\*/")
_PLAIN = re.compile(r"""['"][\w.]*['"]""")

# Words that make state: at the begin of a statement, or anywhere if they can stand inside another
# statement. A false match costs a session its replacement; a missed one would lose state.
_STATE = re.compile(
    r"""^\s*(?:set\s+(?!local\b|transaction\b|constraints\b)
        |listen\b|load\b|call\b|do\b|prepare\s+(?!transaction\b))
    |\bcreate\s+(?:or\s+replace\s+)?(?:(?:global|local)\s+)?temp(?:orary)?\b
    |\bcreate\b.*\bpg_temp\s*\.
    |\binto\s+(?:(?:global|local)\s+)?temp(?:orary)?\b
    |\bdeclare\b.*\bwith\s+hold\b""",
    re.VERBOSE | re.DOTALL,
)
_BEGIN = re.compile(r"\s*(?:begin|start\s+transaction)\b")
# SET SESSION AUTHORIZATION changes current_user and session_user alike, so their comparison in
# HELD_STATE doesn't show it.
_UNLISTED_SET = re.compile(r'\s*set\s+(?:session\s+authorization\b|(?:session\s+)?[\w"]+\s*\.)')
# set_config(…, true) is SET LOCAL. Otherwise the setting can be listed only if its name is a plain
# one in quotes.
_SET_CONFIG = re.compile(
    r"\bset_config\W*\((?![^()]*,\s*true\s*\)(?:\W|$))(?P<listed>\s*'[^'.]+'\s*,)?"
)
_CALL = re.compile(r'(?P<before>::|[\w"]*)\s*(?<![\w"."])(?P<name>[\w"]+(?:\s*\.\s*[\w"]+)*)\s*\(')
# A name between one of these words and a parenthesis is a table, a column alias or a type.
_NAMES_NO_FUNCTION = frozenset(["::", "as", "copy", "into", "references", "table"])


def read(sql: str) -> Leaves:
    """Return the kind of state that *sql* leaves behind in its session."""
    text = _without_texts(sql.lower())
    if text is None:
        return Leaves.STATE
    if "set_config" in text and (call := _SET_CONFIG.search(text)):
        return Leaves.STATE if call["listed"] else Leaves.UNLISTED_STATE
    statements = text.split(";", _MANY_STATEMENTS)
    if len(statements) >= _MANY_STATEMENTS:
        return Leaves.STATE
    if any(_UNLISTED_SET.match(each) for each in statements):
        return Leaves.UNLISTED_STATE
    # pg_advisory_xact_lock doesn't match, because it ends with its transaction.
    if "advisory_lock" in text or any(_STATE.search(each) for each in statements):
        return Leaves.STATE
    if any(_BEGIN.match(each) for each in statements):
        return Leaves.TRANSACTION
    return Leaves.UNKNOWN if _calls_unknown_function(text) else Leaves.NOTHING


remember = functools.lru_cache(maxsize=512)(read)
""":func:`read` with a cache, for texts of at most KEPT_CHARACTERS."""


def _without_texts(sql: str) -> str | None:
    """Return *sql* with spaces for comments and without the text inside its literals.

    None means that the text is ambiguous.
    """
    if not any(each in sql for each in ("'", '"', "--", "/*", "$")):
        return sql
    if 'u&"' in sql:
        return None
    parts: list[str] = []
    start = 0
    while opens := _OPENS.search(sql, start):
        parts.append(sql[start : opens.start()])
        start = opens.end()
        found = opens[0]
        kind = opens.lastgroup
        if kind == "unclosed":
            return None
        if kind in ("comment", "block"):
            parts.append(" ")
            if kind == "block":
                start = _end_of_block(sql, start)
        elif kind == "dollar":
            end = sql.find(found, start)
            start = end + len(found) if end >= 0 else -1
            parts.append("''")
        # With standard_conforming_strings off, the literal would not end at this quote.
        elif kind == "text" and "\\'" in found:
            return None
        elif _PLAIN.fullmatch(found):
            parts.append(found)
        else:
            parts.append("''" if kind != "name" else '"?"')
        if start < 0:
            return None
    parts.append(sql[start:])
    return "".join(parts)


def _end_of_block(sql: str, start: int) -> int:
    """Return the end of the comment that opens before *start*, or -1; comments may be nested.

    **Source:** PostgreSQL documentation, "Lexical Structure", Comments.
    """
    depth = 1
    while depth and (mark := _BLOCK.search(sql, start)):
        depth += 1 if mark[0] == "/*" else -1
        start = mark.end()
    return -1 if depth else start


def _calls_unknown_function(text: str) -> bool:
    for call in _CALL.finditer(text):
        if call["before"] in _NAMES_NO_FUNCTION:
            continue
        name = re.sub(r"\s", "", call["name"]).replace('"', "").removeprefix("pg_catalog.")
        if name not in _HARMLESS and not name.startswith(_HARMLESS_PREFIXES):
            return True
    return False


# SQL keywords that stand before a parenthesis, and the PostgreSQL functions that the ORM and most
# raw queries call. A function that is missing here only costs a session its silent replacement.
_HARMLESS = frozenset(
    """
    all and any as brin btree by case check conflict cube distinct else except exclude exists
    explain filter foreign from gin gist group grouping having hash ilike in include index inherits
    intersect is join key lateral like limit list materialized not offset on only options or over
    partition primary range recursive returning rollup select sets set similar some spgist then
    union unique using values when where with within

    bigint bit char character date decimal double float geography geometry int integer interval
    numeric smallint text time timestamp timestamptz varbit varchar vector

    abs acos age any_value array asin atan atan2 avg bit_and bit_length bit_or bit_xor bool_and
    bool_or btrim cast cbrt ceil ceiling char_length character_length chr clock_timestamp coalesce
    col_description collation concat concat_ws convert_from convert_to corr cos cosh cot count
    covar_pop covar_samp cume_dist current_database current_schema current_schemas current_setting
    current_user currval daterange decode degrees dense_rank div encode enum_range every exp extract
    factorial first_value floor format format_type gcd gen_random_bytes gen_random_uuid
    generate_series generate_subscripts get_bit get_byte greatest hashtext height inet int4range
    int8range isempty isfinite justify_days justify_hours justify_interval lag last_value lastval
    lcm lead least left length ln localtime localtimestamp log log10 lower lower_inc lower_inf lpad
    ltrim make_date make_interval make_time make_timestamp make_timestamptz md5 max min mod mode
    nextval now nth_value ntile nullif num_nonnulls num_nulls numrange obj_description octet_length
    overlay percent_rank percentile_cont percentile_disc pi plainto_tsquery phraseto_tsquery
    position power quote_ident quote_literal quote_nullable radians random rank regr_avgx regr_avgy
    regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy repeat replace reverse
    right round row row_number row_to_json rpad rtrim scale session_user set_config setval setweight
    sha224 sha256 sha384 sha512 sign similarity sin sinh split_part sqrt starts_with
    statement_timestamp stddev stddev_pop stddev_samp strip strpos substr substring sum tan tanh
    timeofday timezone transaction_timestamp translate trim trim_array trunc tsrange tstzrange
    txid_current txid_current_if_assigned unaccent unistr unnest upper upper_inc upper_inf user
    uuid_generate_v4 uuidv4 uuidv7 var_pop var_samp variance version websearch_to_tsquery
    width_bucket word_similarity xmlagg xmlelement

    pg_backend_pid pg_blocking_pids pg_cancel_backend pg_column_size pg_current_xact_id
    pg_current_xact_id_if_assigned pg_database_size pg_get_constraintdef pg_get_expr pg_get_indexdef
    pg_get_serial_sequence pg_get_viewdef pg_has_role pg_indexes_size pg_is_in_recovery
    pg_listening_channels pg_my_temp_schema pg_notify pg_postmaster_start_time pg_relation_size
    pg_size_pretty pg_sleep pg_sleep_for pg_sleep_until pg_stat_get_activity pg_table_is_visible
    pg_table_size pg_terminate_backend pg_total_relation_size pg_try_advisory_xact_lock
    pg_advisory_xact_lock pg_advisory_unlock pg_advisory_unlock_all pg_typeof

    geometrytype
    """.split()  # noqa: SIM905
)
_HARMLESS_PREFIXES = (
    "array_",
    "date_",
    "has_",
    "json_",
    "jsonb_",
    "postgis_",
    "range_",
    "regexp_",
    "st_",
    "string_",
    "to_",
    "ts_",
)
