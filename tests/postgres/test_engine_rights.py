"""A silent replacement never changes the rights, the tenant or the types of a session."""

from __future__ import annotations

import gc
import uuid
import weakref

import django
import pytest
from django.db import InterfaceError, OperationalError
from django.db.backends.postgresql.base import Cursor
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper

from conn_guard import pin
from conn_guard.engine import driver, reading
from tests.postgres.conftest import GUARDED

BROKEN = (OperationalError, InterfaceError)
only_psycopg3 = pytest.mark.skipif(not is_psycopg3, reason="psycopg 3's own methods")
only_psycopg2 = pytest.mark.skipif(is_psycopg3, reason="psycopg2's own methods")


@pytest.fixture
def app(make_engine, ask):
    """An alias whose login role is no superuser and may become the role "low"."""
    name = f"app_{uuid.uuid4().hex[:8]}"
    ask(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    ask(f"CREATE ROLE {name}_low ROLE {name}")
    ask(
        f"CREATE FUNCTION {name}_become() RETURNS void LANGUAGE plpgsql AS "
        f"$$ BEGIN EXECUTE 'SET ROLE {name}_low'; END $$"
    )
    ask(f"CREATE FUNCTION to_{name}() RETURNS void LANGUAGE sql AS 'SELECT {name}_become()'")
    ask(
        f"CREATE PROCEDURE {name}_call() LANGUAGE plpgsql AS "
        f"$$ BEGIN EXECUTE 'SET ROLE {name}_low'; END $$"
    )
    alias = make_engine(CONN_MAX_AGE=None, USER=name, PASSWORD="secret")
    alias.role = name
    yield alias
    alias.wrapper.close()
    ask(f"DROP FUNCTION to_{name}()")
    ask(f"DROP FUNCTION {name}_become()")
    ask(f"DROP PROCEDURE {name}_call()")
    ask(f"DROP ROLE {name}_low")
    ask(f"DROP ROLE {name}")


def prefix(alias):
    def wrapper(execute, sql, params, many, context):
        return execute(f"SET ROLE {alias.role}_low; {sql}", params, many, context)

    with alias.wrapper.execute_wrapper(wrapper):
        alias.query()


def wrapper_with_a_raw_cursor(alias):
    def wrapper(execute, sql, params, many, context):
        context["cursor"].cursor.execute(f"SET ROLE {alias.role}_low")
        return execute(sql, params, many, context)

    with alias.wrapper.execute_wrapper(wrapper):
        alias.query()


def raw_cursor(alias):
    with alias.wrapper.cursor() as cursor:
        cursor.cursor.execute(f"SET ROLE {alias.role}_low")


def raw_connection(alias):
    alias.query()
    with alias.wrapper.connection.cursor() as cursor:
        cursor.execute(f"SET ROLE {alias.role}_low")


def connection_execute(alias):
    alias.query()
    alias.wrapper.connection.execute(f"SET ROLE {alias.role}_low")


def stream(alias):
    with alias.wrapper.cursor() as cursor:
        list(cursor.stream(f"SELECT {alias.role}_become()"))


def copy(alias):
    with (
        alias.wrapper.cursor() as cursor,
        cursor.copy(f"COPY (SELECT {alias.role}_become()::text) TO STDOUT") as rows,
    ):
        list(rows)


def copy_expert(alias):
    import io

    with alias.wrapper.cursor() as cursor:
        query = f"COPY (SELECT {alias.role}_become()::text) TO STDOUT"
        cursor.copy_expert(query, io.StringIO())


def callproc(alias):
    with alias.wrapper.cursor() as cursor:
        cursor.callproc(f"{alias.role}_become")


def debugging_cursor(alias):
    """As django-debug-toolbar does: another cursor of the same class around the raw cursor."""
    with alias.wrapper.cursor() as cursor:
        mine = type("Mine", (cursor.__class__,), {})(cursor.cursor, alias.wrapper)
        assert isinstance(mine, CursorWrapper)
        mine.execute(f"SET ROLE {alias.role}_low")


def server_side_cursor(alias):
    with alias.wrapper.chunked_cursor() as cursor:
        cursor.execute(f"SELECT {alias.role}_become()")
        cursor.fetchall()


def named_raw_cursor(alias):
    alias.query()
    with alias.wrapper.connection.cursor("named", withhold=True) as cursor:
        cursor.execute(f"SELECT {alias.role}_become()")
        cursor.fetchall()


def template_string(alias):
    class Template:
        """As a t-string of Python 3.14: neither a str nor an object with as_string()."""

    alias.query()
    reading._readers[id(alias.wrapper.connection)](Template())
    alias.query(f"SELECT {alias.role}_become()")


TEXTS = {
    "SET ROLE": "SET ROLE {role}_low",
    "SET/**/ROLE": "SET/**/ROLE/* /* */ */{role}_low",
    "DO": "DO $$ BEGIN EXECUTE 'SET ROLE {role}_low'; END $$",
    "DO PERFORM": "DO $$ BEGIN PERFORM {role}_become(); END $$",
    "CALL": "CALL {role}_call()",
    "a function": "SELECT {role}_become()",
    "a function named like PostgreSQL's": "SELECT to_{role}()",
    "a function in WITH": "WITH x AS (SELECT {role}_become()) SELECT 1 FROM x",
    "two statements": "SELECT ';'; SET ROLE {role}_low",
}
WAYS = {
    each.__name__: each
    for each in (prefix, wrapper_with_a_raw_cursor, raw_cursor, raw_connection, debugging_cursor,
                 server_side_cursor, named_raw_cursor, callproc, template_string)
}  # fmt: skip


@pytest.mark.parametrize("debug", [False, True])
def test_a_dropped_server_side_cursor_needs_no_garbage_collector(guarded, settings, debug):
    settings.DEBUG = debug
    gc.disable()
    try:
        cursor = guarded.wrapper.chunked_cursor()
        cursor.execute("SELECT 1")
        gone = weakref.ref(cursor)
        cursor.close()
        del cursor
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("way", [*TEXTS, *WAYS])
def test_a_session_that_took_another_role_gives_the_caller_the_error(app, way):
    if way in TEXTS:
        app.query(TEXTS[way].format(role=app.role))
    else:
        WAYS[way](app)
    if way != "server_side_cursor":
        assert app.query("SELECT current_user") == [(f"{app.role}_low",)]
    app.end_sessions()
    with pytest.raises(BROKEN):
        app.query("SELECT current_user")
    app.wrapper.close()
    assert app.query("SELECT current_user") == [(app.role,)]


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(connection_execute, marks=only_psycopg3),
        pytest.param(stream, marks=only_psycopg3),
        pytest.param(copy, marks=only_psycopg3),
        pytest.param(copy_expert, marks=only_psycopg2),
    ],
)
def test_a_drivers_own_method_is_seen_as_well(app, way):
    way(app)
    assert app.query("SELECT current_user") == [(f"{app.role}_low",)]
    app.end_sessions()
    with pytest.raises(BROKEN):
        app.query("SELECT current_user")


@pytest.mark.parametrize(
    "statement",
    [
        "SET app.tenant = '5'",
        "SELECT set_config('app.tenant', 'a, true)', false)",
        "LOAD 'plpgsql'",
    ],
)
def test_a_session_that_holds_a_tenant_or_a_library_gives_the_caller_the_error(guarded, statement):
    guarded.query(statement)
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query()


def unseen(alias, statement):
    """Run *statement* on a cursor whose statements the engine doesn't see."""
    alias.query()
    raw = alias.wrapper.connection
    reader = reading._readers.pop(id(raw))
    with raw.cursor() as cursor:
        cursor.execute(statement)
    reading._readers[id(raw)] = reader


@pytest.mark.parametrize(
    "statement",
    ["SET ROLE pg_monitor", "SET SESSION AUTHORIZATION pg_monitor", "SET TIME ZONE 'Asia/Tokyo'"],
)
def test_a_reported_setting_that_changed_unseen_prevents_replacement(guarded, statement):
    """SET ROLE changes is_superuser here, because the tests' login role is a superuser."""
    unseen(guarded, statement)
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query()


def test_search_path_is_reported_from_postgresql_18_on(guarded):
    unseen(guarded, "SET search_path = tenant_5")
    is_reported = guarded.wrapper.pg_version >= 180000
    guarded.end_sessions()
    if is_reported:
        with pytest.raises(BROKEN):
            guarded.query()
    else:
        assert guarded.query() == [(1,)]


def test_a_cursor_factory_that_is_no_class_prevents_replacement(make_engine):
    def factory(*args, **kwargs):
        return driver.DatabaseWrapper.Database.ClientCursor(*args, **kwargs)

    if not is_psycopg3:
        from psycopg2.extensions import cursor as factory_class

        def factory(*args, **kwargs):
            return factory_class(*args, **kwargs)

    alias = make_engine(CONN_MAX_AGE=None, options={"cursor_factory": factory})
    alias.query()
    alias.end_sessions()
    with pytest.raises(BROKEN):
        alias.query()


def test_the_class_of_cursors_equals_the_one_that_was_configured(make_engine):
    class Mine(driver.DatabaseWrapper.Database.extensions.cursor if not is_psycopg3 else Cursor):
        pass

    alias = make_engine(options={"cursor_factory": Mine})
    alias.query()
    assert alias.wrapper.connection.cursor_factory == Mine
    assert alias.wrapper.connection.cursor_factory != Cursor
    with alias.wrapper.cursor() as cursor:
        assert isinstance(cursor.cursor, Mine)


def test_an_alias_may_opt_out_of_replacement(make_engine, settings):
    alias, other = make_engine(CONN_MAX_AGE=None), make_engine(CONN_MAX_AGE=None)
    settings.CONN_GUARD = {"ENGINE_REPLACE": {alias.name: False}}
    for each in (alias, other):
        each.query()
        each.end_sessions()
    with pytest.raises(BROKEN):
        alias.query()
    assert other.query() == [(1,)]


class Proxy:
    """A driver's connection or cursor behind a proxy, as monitoring tools make it."""

    def __init__(self, target):
        vars(self)["target"] = target

    def __getattr__(self, name):
        value = getattr(vars(self)["target"], name)
        return (lambda *args, **named: Proxy(value(*args, **named))) if name == "cursor" else value

    def __setattr__(self, name, value):
        setattr(vars(self)["target"], name, value)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 takes no proxy in its own functions")
def test_a_statement_behind_a_monitoring_tools_proxy_is_seen(app, monkeypatch):
    connect = app.wrapper.Database.connect
    monkeypatch.setattr(
        app.wrapper.Database, "connect", lambda *args, **named: Proxy(connect(*args, **named))
    )
    app.query(f"SET ROLE {app.role}_low")
    assert isinstance(app.wrapper.connection, Proxy)
    app.end_sessions()
    with pytest.raises(BROKEN):
        app.query("SELECT current_user")


def test_the_setup_of_a_subclass_counts_as_state(guarded, monkeypatch):
    """django-tenants sets its search_path when Django first asks for the server's version."""
    base = type(guarded.wrapper).__mro__[2]
    setup = base.init_connection_state

    def init_connection_state(self):
        setup(self)
        if self.alias == guarded.name:
            with self.connection.cursor() as cursor:
                cursor.execute("SET search_path = tenant_5")

    monkeypatch.setattr(base, "init_connection_state", init_connection_state)
    guarded.query()
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query()


# Modes of transactions


def only_read(raw):
    if is_psycopg3:
        raw.read_only = True
    else:
        raw.set_session(readonly=True)


def serializable(raw):
    if is_psycopg3:
        import psycopg

        raw.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    else:
        raw.set_session(isolation_level="SERIALIZABLE")


def without_autocommit(raw):
    raw.autocommit = False


@pytest.mark.parametrize("tell", [only_read, serializable, without_autocommit])
def test_a_mode_that_only_the_driver_knows_prevents_replacement(guarded, tell):
    guarded.query()
    tell(guarded.wrapper.connection)
    guarded.query()
    guarded.wrapper.connection.rollback()
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query()


def test_a_connection_with_a_mode_of_its_own_is_not_closed_for_rest(make_engine, settings):
    settings.CONN_GUARD = {"ENGINE_IDLE_FOR": 0.1}
    alias, other = make_engine(), make_engine()
    other.query()
    pid = alias.pid()
    only_read(alias.wrapper.connection)
    assert other.becomes(0)
    assert alias.until(lambda: "holds-state" in alias.sessions()[0][2])
    assert alias.pids() == {pid}


# Types


def register(alias):
    """Register a loader on one connection, as pgvector's register_vector does."""
    alias.query()
    raw = alias.wrapper.connection
    if is_psycopg3:
        from psycopg.types.string import TextLoader

        raw.adapters.register_loader("int4", TextLoader)
    else:
        from psycopg2.extensions import UNICODE, new_type, register_type

        register_type(new_type((23,), "NUMBER_AS_TEXT", UNICODE), raw)


def test_types_registered_on_a_connection_prevent_replacement(guarded):
    register(guarded)
    assert guarded.query("SELECT 1::int4") == [("1",)]
    guarded.end_sessions()
    with pytest.raises(BROKEN):
        guarded.query("SELECT 1::int4")


def test_a_connection_with_types_of_its_own_is_not_closed_for_rest(make_engine, settings, until):
    from datetime import timedelta

    settings.CONN_GUARD = {"ENGINE_IDLE_FOR": timedelta(seconds=0.1)}
    alias, other = make_engine(), make_engine()
    other.query()
    register(alias)
    pid = alias.pids()
    assert other.becomes(0)
    until(lambda: "holds-state" in alias.sessions()[0][2])
    assert alias.pids() == pid
    assert alias.query("SELECT 1::int4") == [("1",)]


def test_types_that_connection_created_registers_do_not_prevent_replacement(guarded):
    def receive(connection, **kwargs):
        if connection.alias == guarded.name:
            register(guarded)

    connection_created.connect(receive)
    try:
        assert guarded.query("SELECT 1::int4") == [("1",)]
        guarded.end_sessions()
        assert guarded.query("SELECT 1::int4") == [("1",)]
    finally:
        connection_created.disconnect(receive)


# Rows


@pytest.mark.parametrize("engine", [GUARDED, "django.db.backends.postgresql"])
@pytest.mark.parametrize("begin", ["AUTOCOMMIT", "BEGIN"])
def test_close_old_connections_in_the_middle_loses_no_rows(make_engine, table, engine, begin):
    """Channels calls close_old_connections around each piece of synchronous code."""
    alias = make_engine(engine=engine, CONN_MAX_AGE=600, AUTOCOMMIT=begin == "BEGIN")
    if begin == "BEGIN":
        alias.query("BEGIN")
    alias.query(f"INSERT INTO {table} (n) VALUES (1)")
    alias.wrapper.close_if_unusable_or_obsolete()
    alias.query(f"INSERT INTO {table} (n) VALUES (2)")
    alias.query("COMMIT")
    assert alias.query(f"SELECT n FROM {table} ORDER BY n") == [(1,), (2,)]


def test_pin_prevents_replacement_after_an_unseen_statement(guarded):
    """The documented remedy for cursor classes that an application calls itself."""
    with pin(guarded.name):
        unseen(guarded, "SET statement_timeout = 50000")
        guarded.end_sessions()
        with pytest.raises(BROKEN):
            guarded.query()


@pytest.mark.skipif(
    django.VERSION < (5, 1) or not is_psycopg3, reason="Django's pool came with 5.1, for psycopg 3"
)
def test_a_pooled_connection_that_took_another_role_gives_the_caller_the_error(make_engine):
    alias = make_engine(options={"pool": {"min_size": 1, "max_size": 1, "timeout": 5}})
    alias.query()
    with alias.wrapper.connection.cursor() as cursor:
        cursor.execute("SET ROLE pg_monitor")
    alias.end_sessions()
    with pytest.raises(BROKEN):
        alias.query()
