"""The page on PostgreSQL's settings: each block runs on a real server, and each effect is seen."""

from __future__ import annotations

import re
from contextlib import contextmanager

import pytest
from django.db.backends.postgresql.base import Database
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from tests.postgres.howto import HOW_TO, blocks, statements
from tests.support.own_server import own_server
from tests.support.polling import until
from tests.support.reaping import RawClient

PAGE = "postgresql-settings"
SUPPORTED = range(14, 19)
ROLES = {"shop": "LOGIN", "reaper": "LOGIN", "reports": "LOGIN"}
MAX_CONNECTIONS = 100
# Which major version a block's note asks for.
SINCE = {"restart-16": 16, "timeouts-17": 17}


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with (
        django_db_blocker.unblock(),
        own_server(roles=ROLES, max_connections=MAX_CONNECTIONS) as server,
    ):
        yield server


@pytest.fixture(autouse=True)
def defaults(server):
    """Return the roles to their own values after each test."""
    yield
    for role in ROLES:
        server.ask(f"ALTER ROLE {role} RESET ALL")
        server.ask(f"ALTER ROLE {role} CONNECTION LIMIT -1")


def block(note):
    return statements(*blocks(PAGE, "sql", note))


def table(heading):
    """Return the rows of the first table below *heading*, a list of cells each."""
    text = (HOW_TO / f"{PAGE}.md").read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    rows = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def login(server, role="shop"):
    return server.session(role)


def code_of(setting):
    """Return the SQLSTATE that the page tells for a setting."""
    (code,) = [row[2] for row in table("Timeouts") if row[0].startswith(f"`{setting}`")]
    return code


@contextmanager
def error_of(setting, words, *, session_ends=False):
    """Expect an error with *words* and the code that the page tells for a setting."""
    if session_ends and not is_psycopg3:
        with pytest.raises(Database.Error, match="server closed the connection unexpectedly"):
            yield
        return
    with pytest.raises(Database.Error, match=words) as raised:
        yield
    found = raised.value.sqlstate if is_psycopg3 else raised.value.pgcode
    assert found == code_of(setting)


def test_every_block_is_tried_here():
    notes = {each.note for each in blocks(PAGE)}
    assert {each.language for each in blocks(PAGE)} == {"sql"}
    assert notes == {
        *("slots", "restart", "restart-16", "limit", "timeouts", "timeouts-17", "gone", "memory"),
        *("reports", "in-force", "undo"),
    }


# Slots


def test_the_slots_of_applications_are_as_many_as_can_log_in(django_db_blocker):
    reserved = {"superuser_reserved_connections": 2}
    with django_db_blocker.unblock(), own_server(roles=ROLES, max_connections=8) as server:
        if server.major >= 16:
            reserved["reserved_connections"] = 2
            server.ask("GRANT pg_use_reserved_connections TO reaper")
        for name, value in reserved.items():
            server.ask(f"ALTER SYSTEM SET {name} = {value}")
        server.forget()
        server.server.restart()
        (statement,) = block("slots")
        ((all_slots, for_applications, taken),) = server.ask(statement)
        assert (all_slots, for_applications, taken) == (8, 8 - sum(reserved.values()), 1)
        # The observer has a slot of its own.
        for _ in range(for_applications - taken):
            login(server)
        with pytest.raises(Database.OperationalError, match=r"remaining connection slots|too many"):
            login(server)
        if server.major >= 16:
            login(server, "reaper")
        server.clean()


def test_a_role_at_its_limit_is_refused(server):
    (statement,) = block("limit")
    server.ask(statement)
    assert server.ask("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'shop'") == [(80,)]
    server.ask(statement.replace("80", "2"))
    for _ in range(2):
        login(server)
    with pytest.raises(Database.OperationalError, match='too many connections for role "shop"'):
        login(server)
    login(server, "reports")


def test_the_settings_of_the_server_are_in_force_after_a_restart(django_db_blocker):
    with django_db_blocker.unblock(), own_server(roles=ROLES, max_connections=20) as server:
        wanted = [*block("restart"), *block("gone")]
        if server.major >= SINCE["restart-16"]:
            wanted += block("restart-16")
        for statement in wanted:
            server.ask(statement)
        server.forget()
        server.server.restart()
        read = dict(re.findall(r"ALTER SYSTEM SET (\w+) = '?(\w+)'?", ";".join(wanted)))
        # The command line of a throwaway server wins over the file.
        in_file = (
            "SELECT setting FROM pg_file_settings WHERE name = 'max_connections' AND sourcefile"
            " LIKE '%auto.conf'"
        )
        assert server.ask(in_file) == [(read.pop("max_connections"),)]
        # The server tells what the socket has, in milliseconds.
        assert read["tcp_user_timeout"] == "2min"
        read["tcp_user_timeout"] = "120000"
        session = login(server)
        assert {name: session.execute(f"SHOW {name}")[0][0] for name in read} == read
        server.clean()


# Timeouts


@pytest.mark.parametrize("note", ["timeouts", "timeouts-17"])
def test_a_role_has_the_timeouts_at_its_next_login(server, note):
    if server.major < SINCE.get(note, 0):
        pytest.skip(f"came with PostgreSQL {SINCE[note]}")
    before = login(server)
    for statement in block(note):
        server.ask(statement)
        name, value = re.search(r"SET (\w+) = '(\w+)'", statement).groups()
        assert before.execute(f"SHOW {name}") == [("0",)]
        session = login(server)
        assert session.execute(f"SHOW {name}") == [(value,)]
        assert session.execute(f"SELECT set_config('{name}', '0', false)") == [("0",)]


@pytest.mark.parametrize(
    ("name", "begin", "words", "since"),
    [
        ("idle_session_timeout", False, "idle-session timeout", 14),
        ("idle_in_transaction_session_timeout", True, "idle-in-transaction timeout", 14),
        ("transaction_timeout", True, "transaction timeout", 17),
    ],
)
def test_a_session_that_rests_too_long_ends(server, name, begin, words, since):
    if server.major < since:
        pytest.skip(f"came with PostgreSQL {since}")
    server.ask(f"ALTER ROLE shop SET {name} = '300ms'")
    session = login(server)
    if begin:
        session.execute("BEGIN")
    until(lambda: not server.alive(session))
    with error_of(name, words, session_ends=True):
        session.execute("SELECT 1")


def test_a_statement_that_lasts_too_long_ends_and_its_session_stays(server):
    server.ask("ALTER ROLE shop SET statement_timeout = '100ms'")
    session = login(server)
    with error_of("statement_timeout", "statement timeout"):
        session.execute("SELECT pg_sleep(60)")
    assert session.execute("SELECT 1") == [(1,)]


def test_a_statement_that_waits_too_long_for_a_lock_ends(server):
    server.ask("ALTER ROLE shop SET lock_timeout = '100ms'")
    holder, waiter = login(server), login(server)
    holder.execute("SELECT pg_advisory_lock(1)")
    with error_of("lock_timeout", "lock timeout"):
        waiter.execute("SELECT pg_advisory_lock(1)")
    assert waiter.execute("SELECT 1") == [(1,)]


# Clients that are gone


def test_a_client_that_leaves_a_running_statement_is_noticed_with_the_setting_alone(server):
    address = {"host": server.server.host, "port": server.server.port, "database": "postgres"}
    server.ask("ALTER ROLE shop SET client_connection_check_interval = '200ms'")
    checked, unchecked = (RawClient(user=role, **address) for role in ("shop", "reports"))
    for each in (checked, unchecked):
        each.send("SELECT pg_sleep(600)")
    pids = [checked.pid, unchecked.pid]
    running = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s) AND state = 'active'"
    until(lambda: len(server.ask(running, [pids])) == 2)
    for each in (checked, unchecked):
        each.close()
    until(lambda: server.ask(running, [pids]) == [(unchecked.pid,)])
    server.ask("SELECT pg_terminate_backend(%s)", [unchecked.pid])


def test_a_client_at_rest_that_leaves_needs_no_setting(server):
    address = {"host": server.server.host, "port": server.server.port, "database": "postgres"}
    client = RawClient(user="shop", **address)
    client.close()
    until(lambda: not server.ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [client.pid]))


# Memory


def test_the_plan_of_memory_is_the_tables_first_row(server):
    (statement,) = block("memory")
    defaults = [server.ask(f"SHOW {name}")[0][0] for name in ("shared_buffers", "work_mem")]
    first = table("Memory")[0]
    assert [cell.replace(" ", "") for cell in (first[0], first[2])] == defaults
    assert int(first[1]) == MAX_CONNECTIONS
    assert server.ask(statement) == [(first[3],)]


@pytest.mark.parametrize("row", table("Memory"), ids=" ".join)
def test_the_table_of_memory_is_right(row):
    shared, slots, work, planned = (int(cell.removesuffix(" MB")) for cell in row)
    assert shared + slots * (2 + 2 * work) == planned


def test_a_hash_takes_twice_the_memory_from_15_on(server):
    ((factor,),) = server.ask("SHOW hash_mem_multiplier")
    assert float(factor) == (2 if server.major >= 15 else 1)


def test_a_role_has_more_memory(server):
    (statement,) = block("reports")
    server.ask(statement)
    assert login(server, "reports").execute("SHOW work_mem") == [("64MB",)]
    assert login(server).execute("SHOW work_mem") == [("4MB",)]


# In force


def test_the_source_of_a_value_is_told_and_it_is_undone(server):
    (question,) = block("in-force")
    for statement in block("timeouts"):
        server.ask(statement)
    server.ask("ALTER SYSTEM SET client_connection_check_interval = '10s'")
    server.ask("SELECT pg_reload_conf()")
    check = "client_connection_check_interval"
    until(lambda: server.ask(f"SHOW {check}") == [("10s",)])
    told = {name: rest for name, *rest in login(server).execute(question)}
    assert told["idle_session_timeout"] == ["1800000", "ms", "user"]
    assert told[check] == ["10000", "ms", "configuration file"]
    assert ("transaction_timeout" in told) == (server.major >= 17)
    for statement in block("undo"):
        server.ask(statement)
    server.ask("SELECT pg_reload_conf()")
    until(lambda: server.ask(f"SHOW {check}") == [("0",)])
    assert login(server).execute("SHOW idle_session_timeout") == [("0",)]


# Versions


def test_the_table_of_versions_names_what_is_supported_and_when_each_setting_came(server):
    rows = {int(row[0]): row[2] for row in table("Versions of PostgreSQL")}
    assert [each for each in rows if each in SUPPORTED] == list(SUPPORTED)
    names = {row[0] for row in server.ask("SELECT name FROM pg_settings")}
    for major, new in rows.items():
        for name in re.findall(r"`(\w+_(?:timeout|connections|interval))`", new):
            assert (name in names) == (server.major >= major), name


def test_search_path_is_reported_from_18_on(server):
    reported = login(server).connection.info.parameter_status("search_path")
    assert (reported is not None) == (server.major >= 18)
