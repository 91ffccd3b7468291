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

# The look at one character first makes it several times as fast on a long text.
_OPENS = re.compile(
    r"""(?=[-/e'$"])(?:
    (?P<comment>--[^\n]*)
    |(?P<block>/\*)
    |(?P<escaped>\be'(?:[^'\\]|''|\\.)*')
    |(?P<text>'(?:[^']|'')*')
    |(?P<dollar>\$(?:[^\W\d]\w*)?\$)
    |(?P<name>"(?:[^"]|"")*")
    |(?P<unclosed>['"]))""",
    re.VERBOSE | re.DOTALL,
)
_BLOCK = re.compile(r"/\*|\*/")
_PLAIN = re.compile(r"""['"][\w.]{0,200}['"]""")

# Words that make state: at the begin of a statement, or anywhere if they can stand inside another
# statement. A false match costs a session its replacement; a missed one would lose state.
_STATE_FIRST = re.compile(
    r"""\s*(?:set\s+(?!local\b|transaction\b|constraints\b)
        |listen\b|load\b|call\b|do\b|prepare\s+(?!transaction\b))""",
    re.VERBOSE,
)
_STATE_INSIDE = re.compile(
    r"""\bcreate\s+(?:or\s+replace\s+)?(?:(?:global|local)\s+)?temp(?:orary)?\b
    |\binto\s+(?:(?:global|local)\s+)?temp(?:orary)?\b
    |\bdeclare\b.*\bwith\s+hold\b""",
    re.VERBOSE | re.DOTALL,
)
# Each word is looked for by itself: a pattern for both could take minutes on a long text.
_MAKES = re.compile(r"\b(?:create|into)\b")
_UPDATES = re.compile(r"\bupdate\b")
_BEGIN = re.compile(r"\s*(?:begin|start\s+transaction)\b")
# SET SESSION AUTHORIZATION changes current_user and session_user alike, so their comparison in
# HELD_STATE doesn't show it.
_UNLISTED_SET = re.compile(r'\s*set\s+(?:session\s+authorization\b|(?:session\s+)?[\w"]+\s*\.)')
# set_config(…, true) is SET LOCAL. Otherwise the setting can be listed only if its name is a plain
# one in quotes.
_SET_CONFIG = re.compile(
    r"\bset_config\W*\((?![^()]*,\s*true\s*\)(?:\W|$))(?P<listed>\s*'[^'.]+'\s*,)?"
)
# The text before a parenthesis, read backwards: the name of what is called, and the word before it.
_CALLED = re.compile(r' ?(?P<name>[\w"]+(?: ?\. ?[\w"]+)*)(?P<dot> ?\.)? ?(?P<before>::|[\w"]*)')
_CALLED_CHARACTERS = 400
# A name between one of these words and a parenthesis is a table, an alias, a type or a function
# that isn't called.
_NAMES_NO_FUNCTION = frozenset(
    """
    :: analyze as collation copy exists function into ordinality procedure recursive references
    statistics table tablesample view with
    """.split()  # noqa: SIM905
)
# The table of an index, or a further table expression of WITH: their columns follow.
_INDEXED = re.compile(
    r"""(?:^|;)\s*create\s+(?:unique\s+)?index\b[^();]{0,300}?\son\s+(?:only\s+)?
    [\w"]+(?:\s*\.\s*[\w"]+)*(?:\s+using\s+[\w"]+)?\s*(?=\()""",
    re.VERBOSE,
)
_FURTHER_TABLE = re.compile(
    r""",\s*[\w"]+\s*\([\s\w",]{1,500}\)
    (?=\s*as\s*(?:(?:not\s+)?materialized\s*)?\(\s*(?:select|with)\b)""",
    re.VERBOSE,
)


def read(sql: str) -> Leaves:
    """Return the kind of state that *sql* leaves behind in its session."""
    text = _without_texts(sql.lower())
    if text is None:
        return Leaves.STATE
    # The patterns would go back and forth over a long run of spaces.
    text = " ".join(text.split())
    if "set_config" in text and (call := _SET_CONFIG.search(text)):
        return Leaves.STATE if call["listed"] else Leaves.UNLISTED_STATE
    statements = text.split(";", _MANY_STATEMENTS)
    if len(statements) >= _MANY_STATEMENTS:
        return Leaves.STATE
    if any(_UNLISTED_SET.match(each) for each in statements):
        return Leaves.UNLISTED_STATE
    # An UPDATE of this view is a SET.
    if "pg_settings" in text and _UPDATES.search(text):
        return Leaves.STATE
    if "pg_temp" in text and _MAKES.search(text):
        return Leaves.STATE
    # pg_advisory_xact_lock doesn't match, because it ends with its transaction.
    if "advisory_lock" in text or any(_STATE_FIRST.match(each) for each in statements):
        return Leaves.STATE
    # A pattern is much slower than these words on a long text.
    if ("temp" in text or "hold" in text) and any(map(_STATE_INSIDE.search, statements)):
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
            parts.append("''" if kind != "name" else '"quoted"')
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
    if "index" in text:
        text = _INDEXED.sub(";", text)
    if "with" in text:
        text = _FURTHER_TABLE.sub(",", text)
    opening = text.find("(")
    while opening >= 0:
        call = _CALLED.match(text[max(0, opening - _CALLED_CHARACTERS) : opening][::-1])
        if call and (call["dot"] or _is_unknown(call["name"][::-1], call["before"][::-1])):
            return True
        opening = text.find("(", opening + 1)
    return False


def _is_unknown(called: str, before: str) -> bool:
    if called in _KEYWORDS or before in _NAMES_NO_FUNCTION:
        return False
    name = called.replace(" ", "").replace('"', "").removeprefix("pg_catalog.")
    return name not in _HARMLESS and not name.startswith(_HARMLESS_PREFIXES)


# SQL keywords that stand before a parenthesis.
_KEYWORDS = frozenset(
    """
    all analyze and any as asymmetric between brin btree by case check conflict cube default
    distinct else except exclude exists explain filter for foreign from gin gist group grouping
    hash having ilike in include index inherits intersect is join key lateral like limit list
    materialized not offset on only options or over overlaps partition primary range recursive
    returning rollup select set sets similar some spgist symmetric table then to union unique
    using values when where with within
    """.split()  # noqa: SIM905
)
# PostgreSQL's types and functions that the ORM and most raw queries use. A function that is missing
# here only costs a session its silent replacement. Names and not prefixes, because an application
# may have a to_tenant(). Functions that run a text as SQL, such as ts_stat(), are left out.
_HARMLESS = frozenset(
    """
    bigint bit bytea char character date decimal double float geography geometry int integer
    interval numeric smallint text time timestamp timestamptz timetz varbit varchar vector

    abbrev abs acos acosd acosh age akeys any_value area array array_agg array_append array_cat
    array_dims array_fill array_length array_lower array_ndims array_position array_positions
    array_prepend array_remove array_replace array_reverse array_sample array_shuffle array_sort
    array_to_json array_to_string array_to_tsvector array_upper ascii asin asind asinh atan
    atan2 atan2d atand atanh avals avg bit_and bit_count bit_length bit_or bit_xor bool bool_and
    bool_or box broadcast btrim cardinality casefold cast cbrt ceil ceiling center char_length
    character_length chr circle clock_timestamp coalesce col_description collation concat
    concat_ws convert convert_from convert_to corr cos cosd cosh cot cotd count covar_pop
    covar_samp crc32 crc32c crypt cume_dist current_database current_query current_schema
    current_schemas current_setting current_user currval daitch_mokotoff date_add date_bin
    date_part date_subtract date_trunc datemultirange daterange decode degrees dense_rank
    diameter digest div dmetaphone dmetaphone_alt earth_box earth_distance encode enum_first
    enum_last enum_range erf erfc every exp extract factorial family first_value floor format
    format_type gcd gen_random_bytes gen_random_uuid gen_salt generate_series
    generate_subscripts get_bit get_byte get_current_ts_config greatest has_any_column_privilege
    has_column_privilege has_database_privilege has_foreign_data_wrapper_privilege
    has_function_privilege has_language_privilege has_largeobject_privilege
    has_parameter_privilege has_schema_privilege has_sequence_privilege has_server_privilege
    has_table_privilege has_tablespace_privilege has_type_privilege hashtext height hmac host
    hostmask hstore hstore_to_json hstore_to_jsonb inet inet_client_addr inet_client_port
    inet_merge inet_same_family inet_server_addr inet_server_port initcap int4multirange
    int4range int8multirange int8range is_normalized isclosed isempty isfinite isopen json
    json_agg json_agg_strict json_array json_array_elements json_array_elements_text
    json_array_length json_arrayagg json_build_array json_build_object json_each json_each_text
    json_exists json_extract_path json_extract_path_text json_object json_object_agg
    json_object_agg_strict json_object_agg_unique json_object_agg_unique_strict json_object_keys
    json_objectagg json_populate_record json_populate_recordset json_query json_scalar
    json_serialize json_strip_nulls json_table json_to_record json_to_recordset json_to_tsvector
    json_typeof json_value jsonb_agg jsonb_agg_strict jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object
    jsonb_delete_path jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text
    jsonb_insert jsonb_object jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique
    jsonb_object_agg_unique_strict jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz
    jsonb_path_match jsonb_path_match_tz jsonb_path_query jsonb_path_query_array
    jsonb_path_query_array_tz jsonb_path_query_first jsonb_path_query_first_tz
    jsonb_path_query_tz jsonb_populate_record jsonb_populate_record_valid
    jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls
    jsonb_to_record jsonb_to_recordset jsonb_to_tsvector jsonb_typeof justify_days justify_hours
    justify_interval lag last_value lastval lcm lead least left length levenshtein
    levenshtein_less_equal line ll_to_earth ln lo_close lo_creat lo_create lo_from_bytea lo_get
    lo_lseek lo_lseek64 lo_open lo_put lo_tell lo_tell64 lo_truncate lo_truncate64 lo_unlink
    localtime localtimestamp log log10 loread lower lower_inc lower_inf lowrite lpad lseg
    ltree2text ltrim make_date make_interval make_time make_timestamp make_timestamptz masklen
    max md5 metaphone min min_scale mod mode netmask network nextval nlevel normalize now
    npoints nth_value ntile nullif num_nonnulls num_nulls nummultirange numnode numrange
    obj_description octet_length overlay parse_ident path percent_rank percentile_cont
    percentile_disc pgp_pub_decrypt pgp_pub_encrypt pgp_sym_decrypt pgp_sym_encrypt
    phraseto_tsquery pi plainto_tsquery point polygon position pow power querytree quote_ident
    quote_literal quote_nullable radians radius random random_normal range_agg
    range_intersect_agg range_merge rank regexp_count regexp_instr regexp_like regexp_match
    regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr
    regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy
    repeat replace reverse right round row row_number row_security_active row_to_json rpad rtrim
    scale session_user set_bit set_byte set_config set_masklen setval setweight sha1 sha224
    sha256 sha384 sha512 shobj_description show_trgm sign similarity sin sind sinh skeys soundex
    split_part sqrt starts_with statement_timestamp stddev stddev_pop stddev_samp
    strict_word_similarity string_agg string_to_array string_to_table strip strpos substr
    substring sum svals tan tand tanh text2ltree timeofday timezone to_ascii to_bin to_char
    to_date to_hex to_json to_jsonb to_number to_oct to_regclass to_regcollation to_regnamespace
    to_regoper to_regoperator to_regproc to_regprocedure to_regrole to_regtype to_regtypemod
    to_timestamp to_tsquery to_tsvector transaction_timestamp translate trim trim_array
    trim_scale trunc ts_debug ts_delete ts_filter ts_headline ts_lexize ts_parse ts_rank
    ts_rank_cd ts_token_type tsmultirange tsrange tstzmultirange tstzrange tsvector_to_array
    txid_current txid_current_if_assigned txid_current_snapshot txid_snapshot_xip
    txid_snapshot_xmax txid_snapshot_xmin txid_status txid_visible_in_snapshot unaccent unistr
    unnest upper upper_inc upper_inf user uuid_extract_timestamp uuid_extract_version
    uuid_generate_v1 uuid_generate_v1mc uuid_generate_v3 uuid_generate_v4 uuid_generate_v5
    uuid_nil uuidv4 uuidv7 var_pop var_samp variance version websearch_to_tsquery width_bucket
    word_similarity xml xml_is_well_formed xmlagg xmlcomment xmlconcat xmlelement xmlexists
    xmlforest xmlparse xmlpi xmlroot xmlserialize xmltable xmltext xpath xpath_exists

    pg_advisory_unlock pg_advisory_unlock_all pg_advisory_unlock_shared pg_advisory_xact_lock
    pg_advisory_xact_lock_shared pg_backend_pid pg_basetype pg_blocking_pids pg_cancel_backend
    pg_char_to_encoding pg_client_encoding pg_collation_for pg_column_compression pg_column_size
    pg_conf_load_time pg_current_snapshot pg_current_wal_lsn pg_current_xact_id
    pg_current_xact_id_if_assigned pg_database_size pg_describe_object pg_encoding_to_char
    pg_filenode_relation pg_function_is_visible pg_get_constraintdef pg_get_expr
    pg_get_function_arguments pg_get_function_identity_arguments pg_get_function_result
    pg_get_functiondef pg_get_indexdef pg_get_keywords pg_get_partition_constraintdef
    pg_get_partkeydef pg_get_ruledef pg_get_serial_sequence pg_get_statisticsobjdef
    pg_get_triggerdef pg_get_userbyid pg_get_viewdef pg_has_role pg_index_column_has_property
    pg_index_has_property pg_indexam_has_property pg_indexes_size pg_input_is_valid
    pg_is_in_recovery pg_is_wal_replay_paused pg_last_wal_receive_lsn pg_last_wal_replay_lsn
    pg_last_xact_replay_timestamp pg_listening_channels pg_my_temp_schema pg_notify
    pg_partition_ancestors pg_partition_root pg_partition_tree pg_postmaster_start_time
    pg_relation_filenode pg_relation_filepath pg_relation_size pg_safe_snapshot_blocking_pids
    pg_sequence_last_value pg_size_bytes pg_size_pretty pg_sleep pg_sleep_for pg_sleep_until
    pg_stat_get_activity pg_stat_get_backend_pid pg_table_is_visible pg_table_size
    pg_tablespace_location pg_tablespace_size pg_terminate_backend pg_total_relation_size
    pg_trigger_depth pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared
    pg_type_is_visible pg_typeof pg_wal_lsn_diff pg_xact_commit_timestamp pg_xact_status

    geometrytype
    """.split()  # noqa: SIM905
)
_HARMLESS_PREFIXES = ("postgis_", "st_")
