"""What a statement leaves behind in its session, told by its text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conn_guard.engine.statements import Leaves, read


@pytest.mark.parametrize(
    "sql",
    [
        "SET ROLE low",
        "set search_path = tenant",
        "SET SESSION statement_timeout = 5",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET TIME ZONE 'UTC'",
        "SELECT set_config('search_path', 'a', false)",
        "LISTEN jobs",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock_shared(1, 2)",
        "CREATE TEMP TABLE t (n int)",
        "create temporary view v as select 1",
        "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
        "CREATE LOCAL TEMPORARY SEQUENCE s",
        "CREATE TABLE IF NOT EXISTS pg_temp.t (n int)",
        'CREATE TABLE "pg_temp"."t" (n int)',
        "CREATE TABLE pg_temp_3.t (n int)",
        "SELECT 1 INTO TEMP t",
        "SELECT 1 INTO pg_temp.t",
        "UPDATE pg_settings SET setting = 'tenant' WHERE name = 'search_path'",
        'UPDATE "pg_catalog"."pg_settings" SET setting = %s WHERE name = %s',
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "DECLARE c NO SCROLL CURSOR\nWITH  HOLD FOR SELECT 1",
        "PREPARE p AS SELECT 1",
        "SELECT 1; SET ROLE low",
        "  -- why\n SET ROLE low",
        "/* why */ /* and\nwhy */ LISTEN jobs",
        "SET/**/ROLE low",
        "SET/* /* nested */ */ROLE low",
        "SELECT ';' ; SET ROLE low",
        r"SELECT E'it\'s'; SET ROLE low",
        "SELECT $q$ ' $q$; SET ROLE low",
        'SELECT 1 AS "--"; SET ROLE low',
        "DO $$ BEGIN SET ROLE low; END $$",
        "DO LANGUAGE plpgsql $x$ BEGIN EXECUTE 'SET ' || 'ROLE low'; END $x$",
        "CALL become_low()",
        "LOAD 'auto_explain'",
        "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
        # Where it is not sure that a quote ends the text, it is taken to make state.
        "SELECT 'never closed",
        "SELECT $$ never closed",
        "SELECT 1 /* never closed",
        r"SELECT '\'",
        r'SELECT U&"\0073et_tenant"(1)',
    ],
)
def test_a_statement_that_makes_state(sql):
    assert read(sql) is Leaves.STATE


@pytest.mark.parametrize(
    "sql",
    [
        "SET app.tenant = '5'",
        'SET SESSION "app".tenant = 5',
        "SELECT set_config('app.tenant', %s, false)",
        "SELECT set_config(%s, %s, false)",
        "SELECT SET_CONFIG ( 'app.tenant', '5', %s)",
        "SET SESSION AUTHORIZATION low",
        "SET/**/app/**/./**/tenant = 5",
        "SELECT set_config('app.tenant', 'a, true)', false)",
        "SELECT set_config('a', 'b', true), set_config('app.tenant', 'b', false)",
        "SELECT set_config/**/('app.tenant', 'b', (SELECT false))",
        "SELECT \"set_config\"('app.tenant', '5', false)",
    ],
)
def test_a_statement_that_makes_state_of_which_the_server_tells_nothing(sql):
    assert read(sql) is Leaves.UNLISTED_STATE


@pytest.mark.parametrize(
    "sql", ["BEGIN", "begin isolation level serializable", "START TRANSACTION", "SELECT 1; BEGIN"]
)
def test_a_statement_that_begins_a_transaction(sql):
    assert read(sql) is Leaves.TRANSACTION


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "SELECT 1",
        "SET LOCAL ROLE low",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "SELECT set_config('app.tenant', %s, true)",
        "SELECT pg_advisory_xact_lock(1), pg_advisory_unlock(1)",
        "UPDATE t SET n = 1",
        "UPDATE offset SET role = 'low'",
        "CREATE TABLE temperature (n int)",
        "SELECT * FROM pg_temp.t",
        "INSERT INTO template VALUES (1)",
        "DECLARE c CURSOR FOR SELECT 1",
        "PREPARE TRANSACTION 'two'",
        "SELECT * FROM listen",
        "SELECT setting FROM pg_settings",
        "SELECT settings FROM t; SELECT 2",
    ],
)
def test_a_statement_that_leaves_nothing(sql):
    assert read(sql) is Leaves.NOTHING


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT set_tenant(5)",
        "SELECT app.set_tenant (5)",
        "SELECT app . set_tenant\n(5)",
        "SELECT " + "a" * 1000 + "lower(5)",
        "SELECT app.lower('a')",
        'SELECT "set_tenant"(5)',
        'SELECT "set tenant"(5)',
        'SELECT "the app"."set tenant"(5)',
        "SELECT set_tenant/**/(5)",
        "WITH low AS (SELECT become_low()) SELECT 1",
        "SELECT 1 FROM t JOIN u ON set_tenant(5)",
        "EXPLAIN ANALYZE SELECT set_tenant(5)",
        "INSERT INTO t VALUES (set_tenant(5))",
        "SELECT to_tenant(5), date_of_tenant(5), has_tenant(5), json_of_tenant(5)",
        'SELECT "set"(5)',
        "SELECT * FROM ts_stat('SELECT set_tenant(5)')",
        "SELECT * FROM a, set_tenant(b, c) AS (n int)",
        "SELECT DISTINCT ON (a) set_tenant(5) FROM t",
        "SELECT 1 FROM index JOIN u ON set_tenant(5)",
        'CREATE INDEX "i" ON "t" (set_tenant("a"))',
        'CREATE INDEX "i" ON "t" ("a") WHERE set_tenant("a")',
    ],
)
def test_a_function_that_is_not_known_may_change_the_session(sql):
    assert read(sql) is Leaves.UNKNOWN


@pytest.mark.parametrize(
    "sql",
    [
        'SELECT COUNT("a"."id") FILTER (WHERE ("a"."n" IN (%s, %s))) AS "__count" FROM "a"',
        'INSERT INTO "a" ("id", "name") VALUES (%s, %s) RETURNING "a"."id"',
        'INSERT INTO "a" ("id") SELECT * FROM UNNEST((%s)::integer[]) ON CONFLICT("id") DO NOTHING',
        'SELECT CAST("a"."n" AS numeric(10, 2)), "a"."n"::varchar(5) FROM "a"',
        'UPDATE "a" SET "n" = CASE WHEN ("a"."id" = %s) THEN 1 ELSE NULL END WHERE "a"."id" IN (1)',
        'SELECT EXTRACT(YEAR FROM "a"."at" AT TIME ZONE %s), COALESCE(UPPER("a"."b"), %s) FROM "a"',
        'SELECT (1) AS "a" FROM "t" WHERE EXISTS(SELECT 1 FROM "u" WHERE "u"."id" = ("t"."id"))',
        'SELECT ROW_NUMBER() OVER (PARTITION BY "a"."n" ORDER BY "a"."id") FROM "a"',
        'SELECT GeometryType("a"."p"), ST_AsGeoJSON("a"."p"), postgis_lib_version() FROM "a"',
        'CREATE TABLE "a" ("id" bigint NOT NULL PRIMARY KEY, "name" varchar(20) NOT NULL)',
        'INSERT INTO "order-details" ("unit price", "a") VALUES (%s, %s)',
        'CREATE INDEX "an index" ON "the app"."order details" ("unit price")',
        'CREATE TABLE IF NOT EXISTS "a" ("id" bigint GENERATED BY DEFAULT AS IDENTITY (START 5))',
        'ALTER TABLE "a" ADD COLUMN "at" timestamptz DEFAULT (STATEMENT_TIMESTAMP()) NOT NULL',
        'ALTER TABLE "a" ADD CONSTRAINT "c" CHECK ("n" BETWEEN ("m" - 5) AND ("m" + 5))',
        'CREATE INDEX "i" ON "a" ("id" varchar_pattern_ops DESC) INCLUDE ("m") WHERE "n" > 1',
        'CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "i" ON ONLY "s"."a" ((UPPER("n")))',
        'CREATE INDEX "i" ON "a" USING bloom ("n") WITH (length = 80, col1 = 4)',
        'CREATE COLLATION "c" (locale = %s)',
        "CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION set_tenant()",
        "SELECT attname FROM unnest(c.conkey) WITH ORDINALITY cols(colid, arridx)",
        "VACUUM ANALYZE a (n)",
        "CREATE TABLE b PARTITION OF a FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
        "WITH RECURSIVE t (a) AS (SELECT 1), u (b, c) AS MATERIALIZED (SELECT 2, 3) SELECT 1",
        'SELECT ASCII("a"."n"), STRICT_WORD_SIMILARITY("a"."n", %s), ENCODE(DIGEST("n", %s), %s)',
        'SELECT TO_CHAR("a"."at", %s), JSONB_BUILD_OBJECT(%s, "a"."n"), DATE_TRUNC(%s, "a"."at")',
        "SELECT 'SET ROLE low; set_tenant(5)', $$ LISTEN jobs; $$ -- CALL it()",
    ],
)
def test_the_statements_of_the_orm_leave_nothing(sql):
    assert read(sql) is Leaves.NOTHING


# Statements that hide state

SPACE = st.lists(
    st.sampled_from(
        [" ", "\n", "\t", "/**/", "/* ' */", "/* /* $$ */ */", "-- ' $$\n", "--;\n", '-- "\n']
    ),
    min_size=1,
    max_size=3,
).map("".join)
BEFORE = st.lists(
    st.sampled_from(
        [
            "SELECT 1;",
            "SELECT ''';';",
            "SELECT $a$ ' $a$;",
            r"SELECT E'\'';",
            """SELECT 1 AS "';--";""",
            ";",
        ]
    ),
    max_size=3,
).map("".join)
WORDS = st.sampled_from(
    [
        ["SET", "ROLE", "low"],
        ["SET", "SESSION", "AUTHORIZATION", "low"],
        ["SET", "search_path", "=", "tenant"],
        ["SET", "app.tenant", "TO", "'5'"],
        ["SELECT", "set_config", "(", "'app.tenant',", "'a, true)',", "false", ")"],
        ["SELECT", "set_tenant", "(", "5", ")"],
        ["DO", "$$", "BEGIN", "PERFORM", "set_tenant(5);", "END", "$$"],
        ["CALL", "set_tenant(", ")"],
        ["LOAD", "'library'"],
        ["LISTEN", "jobs"],
        ["CREATE", "TEMP", "TABLE", "t", "(n", "int)"],
        ["SELECT", "1", "INTO", "TEMP", "t"],
        ["SELECT", "pg_advisory_lock", "(1)"],
        ["PREPARE", "p", "AS", "SELECT", "1"],
    ]
)


@st.composite
def hidden(draw):
    """Return a text that makes state, with comments and other statements around its words."""
    words = draw(WORDS)
    text = words[0]
    for word in words[1:]:
        text += draw(SPACE) + word
    change_case = draw(st.sampled_from([str, str.lower, str.upper, str.swapcase]))
    return draw(BEFORE) + draw(SPACE) + change_case(text) + draw(SPACE)


@given(hidden())
@settings(max_examples=500, deadline=None)
def test_no_comment_literal_or_statement_before_it_hides_state(sql):
    assert read(sql) is not Leaves.NOTHING


@given(st.text(alphabet="'\"$-/*;\\ eab()\n", max_size=30))
def test_any_text_can_be_read(sql):
    assert read(sql) in Leaves


def test_a_script_is_taken_to_make_state():
    assert read("SELECT 1;" * 100) is Leaves.STATE


def test_a_long_text_is_read_in_no_time():
    """A bulk insert must not wait for the engine: this would take minutes if a pattern went back
    and forth.
    """
    assert (
        read("INSERT INTO t VALUES " + "(' /* -- temp set_config(a, true) ', 1), " * 40_000)
        is Leaves.NOTHING
    )
    assert read("INSERT INTO t VALUES " + "(' ; /* ', 1), " * 40_000) is Leaves.NOTHING
    assert read("INSERT INTO t VALUES " + "(f(1), '\\" * 40_000) is not Leaves.NOTHING
    assert read("SELECT decode('" + "ab" * 40_000 + "', 'hex')") is Leaves.NOTHING
    assert read("SELECT 1" + " " * 40_000 + "FROM t") is Leaves.NOTHING
    assert read("SELECT 1 FROM " + "a" * 40_000) is Leaves.NOTHING
    assert read("create index " + "into update create index on a " * 10_000) is Leaves.NOTHING
