"""The shape of a statement: what it shows, and that nothing else of the text gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conn_guard.sessions.shape import LONGEST_NAME, MOST_CHARACTERS, shape

COLUMNS = ", ".join(f'"engine_task"."column_{number}"' for number in range(40))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            'SELECT "auth_user"."id" FROM "auth_user" WHERE "auth_user"."id" = 21',
            "SELECT auth_user",
        ),
        ("select * from Auth_User", "SELECT auth_user"),
        ("SELECT 1", "SELECT"),
        ("UPDATE engine_task SET status = 'done' WHERE id = $1", "UPDATE engine_task"),
        ("UPDATE ONLY engine_task SET a = 1", "UPDATE engine_task"),
        ('INSERT INTO "engine_job" ("id") VALUES (1)', "INSERT engine_job"),
        ("DELETE FROM public.engine_job USING a", "DELETE public.engine_job"),
        ("MERGE INTO stock USING sale ON true", "MERGE stock"),
        ("COMMIT", "COMMIT"),
        ("  begin;\n select 1 from secret", "BEGIN"),
        ("LISTEN channel", "LISTEN"),
        ("SET search_path = hidden", "SET"),
        ('FETCH FORWARD (100) FROM "_django_curs_1"', "FETCH"),
        ('DECLARE "c" NO SCROLL CURSOR WITH HOLD FOR SELECT a FROM t', "DECLARE … SELECT t"),
        ("WITH a AS (SELECT * FROM b) SELECT * FROM engine_job", "WITH … SELECT engine_job"),
        ("WITH a AS (SELECT * FROM engine_job) SELECT * FROM a", "WITH … SELECT engine_job"),
        (
            "WITH RECURSIVE a (x) AS NOT MATERIALIZED (SELECT 1), b AS (SELECT 2 FROM c)"
            " UPDATE d SET e = 1 FROM b",
            "WITH … UPDATE d",
        ),
        ("WITH a AS (SELECT * FROM a) SELECT * FROM a", "WITH … SELECT"),
        ("WITH a", "WITH"),
        ("SELECT count(*) FROM (SELECT DISTINCT x FROM tasks) AS s", "SELECT tasks"),
        ("(SELECT a FROM b) UNION (SELECT c FROM d)", "SELECT b"),
        ("SELECT extract(year FROM day) FROM events", "SELECT events"),
        ("SELECT a IS NOT DISTINCT FROM b FROM events", "SELECT events"),
        ("SELECT a AS from, t.from FROM events", "SELECT events"),
        ("SELECT * FROM generate_series(1, 2)", "SELECT"),
        ("SELECT * FROM ROWS FROM (f())", "SELECT"),
        ("SELECT * FROM LATERAL (SELECT 1 FROM x) AS y", "SELECT x"),
        ('SELECT * FROM "Odd ""name"""', 'SELECT "Odd ""name"""'),
        ('SELECT * FROM a."B".c', 'SELECT a."B".c'),
        ('SELECT "(" FROM b', "SELECT b"),
        ('SELECT * FROM "a"."b", "c"."d", "e"', "SELECT a.b"),
        ("TABLE events", "TABLE events"),
        ("COPY events (a) FROM STDIN", "COPY events"),
        ("COPY (SELECT * FROM events) TO STDOUT", "COPY events"),
        ("TRUNCATE TABLE ONLY events", "TRUNCATE events"),
        ("LOCK TABLE events IN SHARE MODE", "LOCK events"),
        ("CREATE TEMP TABLE IF NOT EXISTS scratch (a int)", "CREATE TABLE scratch"),
        ("DROP TABLE IF EXISTS scratch", "DROP TABLE scratch"),
        ("CREATE UNIQUE INDEX CONCURRENTLY hidden ON t (a)", "CREATE INDEX"),
        ("ALTER ROLE app PASSWORD 'x'", "ALTER ROLE"),
        ("CREATE hunter2", "CREATE"),
        ("/* app */ -- view\n SELECT 1 FROM /* a /* b */ c */ t", "SELECT t"),
        ("DELETE hunter2", "DELETE"),
        ("DECLARE c CURSOR", "DECLARE"),
        ("hunter2", ""),
        ("", ""),
        ("((", ""),
        ("'hunter2'", ""),
    ],
)
def test_the_shape_is_the_verb_and_the_first_relation(statement, expected):
    assert shape(statement) == expected


def test_a_select_that_was_cut_off_before_its_from_has_the_table_of_its_first_column():
    assert shape(f"SELECT {COLUMNS}", is_cut=True) == "SELECT engine_task"
    assert shape(f"SELECT DISTINCT {COLUMNS}", is_cut=True) == "SELECT engine_task"
    assert shape(f"SELECT {COLUMNS}") == "SELECT"
    assert shape("SELECT count(*), 'a", is_cut=True) == "SELECT"
    assert shape(f"SELECT {COLUMNS}, 1 FROM f(1)", is_cut=True) == "SELECT"
    assert shape(f"SELECT {COLUMNS}, '{'x' * MOST_CHARACTERS}' FROM t") == "SELECT engine_task"


@pytest.mark.parametrize(
    "statement",
    [
        r"SELECT 'it\' FROM hidden --'",  # a literal of its own, or not: it depends on a setting
        "SELECT U&'\\0061' FROM hidden",
        'SELECT 1 FROM U&"d\\0061t"',
        'SELECT 1 FROM "unterminated',
        "SELECT 'unterminated FROM hidden",
        "SELECT $a$ FROM hidden",
        "SELECT E'a\\' FROM hidden",
        "SELECT 1 /* FROM hidden",
        "SELECT 1FROM hidden",
    ],
)
def test_a_text_that_can_be_read_in_two_ways_gives_its_verb_alone(statement):
    assert shape(statement) == "SELECT"


def test_a_name_is_short_and_safe_for_a_terminal():
    assert shape('SELECT 1 FROM "a\u202e\x1b[31m"') == r'SELECT "a\u202e\x1b[31m"'
    assert shape("SELECT 1 FROM caf\u00e9\u202e") == "SELECT caf\u00e9\\u202e"
    long = shape(f"SELECT 1 FROM {'a' * 200}.{'b' * 200}")
    assert len(long) <= len("SELECT ") + LONGEST_NAME
    assert "…" in long


SECRET = "zq9secret"
BEFORE = ["SELECT a, {} FROM t", "UPDATE t SET a = {}", "INSERT INTO t VALUES (1, {})"]
BEFORE += ["DELETE FROM t WHERE a = {} OR b", "WITH x AS (SELECT {} FROM y) SELECT 1 FROM t"]
BEFORE += ["SELECT f({}) FROM t WHERE a IN ({}, {})", "SET a = {}", "CALL f({})", "NOTIFY a, {}"]
BEFORE += ["ALTER ROLE a PASSWORD {}", "COPY t FROM PROGRAM {}", "{}", "({}", "SELECT {}"]
BEFORE += ["SELECT 1 FROM (SELECT {}) AS x", "DECLARE c CURSOR FOR SELECT {} FROM t", "VALUES ({})"]
HIDDEN = [
    "'{}'",
    "'a''{}'",
    "'a' '{}'",
    "E'a\\'{}'",
    "B'{}'",
    "N'{}'",
    "U&'{}'",
    "$${}$$",
    "$x$ ' {} $x$",
    "/* {} */ 1",
    "/* /* */ {} */ 1",
    "1 -- {}\n",
    "'a\\' {}'",
    "'{}",
    "$${}",
    "/* {}",
    "-- {}",
]
texts = st.text(st.characters(exclude_characters="'$*\\/-\n\r"), max_size=8)


@given(
    st.sampled_from(BEFORE), st.sampled_from(HIDDEN), texts, texts, st.booleans(), st.integers(0)
)
def test_no_literal_and_no_comment_gets_through(frame, hidden, before, after, is_cut, end):
    planted = hidden.format(f"{before}{SECRET}{after}")
    statement = frame.replace("{}", planted)
    for text in (statement, statement[: end % (len(statement) + 1)]):
        assert SECRET not in shape(text, is_cut=is_cut).lower()


NAMES = [
    "SELECT {0} FROM t",
    "SELECT a.{0}, {0}.b FROM t AS {0}",
    "SELECT f({0}), extract(year FROM {0}) FROM t JOIN {0} ON true",
    "SELECT a IS DISTINCT FROM {0} FROM t",
    "SELECT a AS from, {0} FROM t",
    "UPDATE t AS {0} SET {0} = {0} FROM {0}",
    "INSERT INTO t ({0}) SELECT 1 FROM {0}",
    "DELETE FROM t USING {0}",
    "WITH {0} AS (SELECT 1 FROM t) SELECT * FROM {0}",
    "FETCH 1 FROM {0}",
    "LISTEN {0}",
    "SAVEPOINT {0}",
    "EXECUTE {0}(1)",
    "SET ROLE {0}",
    "CREATE INDEX {0} ON {0} (a)",
    "SELECT * FROM {0}(1)",
    "{0}",
    "{0} FROM t",
]


@given(st.sampled_from(NAMES), st.booleans())
def test_no_name_but_the_first_relations_gets_through(frame, is_quoted):
    name = f'"{SECRET}"' if is_quoted else SECRET
    assert SECRET not in shape(frame.format(name))


@given(st.text(max_size=200), st.booleans())
def test_any_text_has_a_shape_that_is_short_and_printable(text, is_cut):
    for statement in (text, f"SELECT {text}", f"SELECT 1 FROM {text}", f"WITH {text}"):
        found = shape(statement, is_cut=is_cut)
        assert found.isprintable()
        assert len(found) < 3 * LONGEST_NAME
