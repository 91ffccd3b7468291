"""The checks that ask a real server, and servers that can't be asked."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import connections

from conn_guard import checks
from conn_guard.checks import facts
from tests.django.checks_project import CAN_POOL, LEVELS, pools
from tests.support.programs import free_port


@pytest.fixture
def make_role(session_factory) -> Iterator[Callable[..., str]]:
    """Return a function that makes a role with LOGIN, these words and these settings."""
    execute = session_factory(application_name="test-roles").execute
    made = []

    def make(words: str = "", **settings: str) -> str:
        name = f"role_{uuid.uuid4().hex[:12]}"
        execute(f"CREATE ROLE {name} LOGIN {words}")
        made.append(name)
        for setting, value in settings.items():
            execute(f"ALTER ROLE {name} SET {setting} = '{value}'")
        return name

    yield make
    for name in made:
        execute(f"DROP ROLE {name}")


@pytest.fixture
def make_alias(django_db_setup, django_db_blocker) -> Iterator[Callable[..., str]]:
    """Return a function that adds an alias on the test database with these values."""
    made = []

    def make(**values: object) -> str:
        name = f"alias_{uuid.uuid4().hex[:12]}"
        connections.settings[name] = {**connections.settings["default"], **values}
        made.append(name)
        return name

    with django_db_blocker.unblock():
        yield make
        for name in made:
            if connections.settings[name]["ENGINE"].startswith("django."):
                connections[name].close()
                if "pool" in (connections.settings[name]["OPTIONS"] or ()):
                    connections[name].close_pool()
                del connections[name]
            del connections.settings[name]


def found(alias: str, *, deploy: bool = False) -> dict[str, str]:
    """Return the findings of the server's checks about *alias*: the text of each id."""
    said = checks.session_checks(databases=[alias])
    if deploy:
        said += checks.deployment_checks(databases=[alias])
    texts = {}
    for message in said:
        id = message.id.removeprefix("conn_guard.")  # noqa: A001
        assert LEVELS[message.level] == id[0]
        hint, address = message.hint.split(" See ")
        assert address == f"docs/reference/checks.md#{id.lower()}"
        hint, _, command = hint.partition(" For more, type ")
        assert command == f"conn-guard check {id}."
        texts[id] = f"{message.msg} HINT: {hint}".replace(alias, "app")
    assert len(texts) == len(said)
    return texts


def test_W301_server_idle_timeout(make_role, make_alias):
    role = make_role(idle_session_timeout="30s")
    assert (
        found(make_alias(USER=role, CONN_MAX_AGE=60))["W301"]
        == "The server of DATABASES['app'] ends a session that is idle for 30 s and"
        " DATABASES['app']['CONN_MAX_AGE'] is 60, without CONN_HEALTH_CHECKS. HINT: Write"
        " CONN_HEALTH_CHECKS = True."
    )
    assert "W301" in found(make_alias(USER=role, CONN_MAX_AGE=None))
    assert "W301" not in found(make_alias(USER=role, CONN_MAX_AGE=30))
    assert "W301" not in found(make_alias(USER=role, CONN_MAX_AGE=60, CONN_HEALTH_CHECKS=True))
    assert "W301" not in found(make_alias(USER=role))
    assert "W301" not in found(make_alias(CONN_MAX_AGE=None))


@pools
@pytest.mark.parametrize(
    ("pool", "kept", "reason"),
    [
        (True, True, "the pool of DATABASES['app'] keeps them for 3600 s"),
        ({"min_size": 0, "max_size": 2}, True, "the pool of DATABASES['app'] keeps them for 600 s"),
        ({"min_size": 1, "max_lifetime": 20}, False, ""),
        ({"min_size": 0, "max_size": 2, "max_idle": 20}, False, ""),
    ],
    ids=["default", "none kept", "short life", "short rest"],
)
def test_a_pool_keeps_connections_for_its_own_time(make_role, make_alias, pool, kept, reason):
    said = found(make_alias(USER=make_role(idle_session_timeout="30s"), OPTIONS={"pool": pool}))
    assert ("W301" in said) is kept
    assert reason in said.get("W301", "")


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_I302_pooler_undeclared(make_alias, pgbouncer, settings, mode):
    alias = make_alias(**pgbouncer(mode).settings)
    said = found(alias)["I302"]
    assert said.startswith("DATABASES['app'] goes through a pooler: the driver was given the pid ")
    assert said.endswith(
        """HINT: Declare its mode: CONN_GUARD['POOLER'] = {'app': "session"} or "transaction"."""
    )
    settings.CONN_GUARD = {"POOLER": {alias: mode}}
    assert "I302" not in found(alias)


def test_a_direct_connection_is_no_pooler(make_alias):
    assert "I302" not in found(make_alias())


def test_I309_could_not_ask(make_alias):
    said = found(make_alias(PORT=free_port(), PASSWORD="hunter2-swordfish"), deploy=True)
    assert set(said) == {"I309"}
    assert (
        "The server of DATABASES['app'] could not be asked, so nothing is known about it"
        " (OperationalError: " in said["I309"]
    )
    assert said["I309"].endswith("HINT: Run manage.py check --database where the server answers.")


@pytest.mark.parametrize(
    "values",
    [
        {"PASSWORD": "hunter2", "OPTIONS": {"sslmode": "hunter2"}},
        {"OPTIONS": {"passfile": "/nowhere/hunter2", "service": "hunter2"}},
        {"OPTIONS": {"password": "hunter2", "hunter2": 1}},
        {"OPTIONS": {"options": "-c work_mem=hunter2"}},
        {"PORT": "password=hunter2"},
        {"ENGINE": "no.such.postgresql.engine"},
        {"OPTIONS": None},
    ],
    ids=str,
)
def test_a_session_that_cannot_be_had_is_an_info_without_a_secret(make_alias, values):
    said = found(make_alias(**values), deploy=True)
    assert set(said) == {"I309"}
    assert "hunter2" not in said["I309"]


def test_an_answer_that_is_not_postgresqls_is_an_info(make_alias, monkeypatch):
    alias = make_alias()
    monkeypatch.setattr(facts, "FACTS", "SELECT 1 WHERE false")
    assert "LookupError: the server doesn't list the role" in found(alias)["I309"]
    monkeypatch.setattr(facts, "FACTS", "SELECT no_such_function()")
    assert set(found(alias, deploy=True)) == {"I309"}


# The sum


@pytest.fixture
def limited(make_role, make_alias, settings) -> Callable[..., str]:
    """Return a function that sets a budget and makes an alias of a role with 20 slots."""

    def make(budget: dict[str, int], **values: object) -> str:
        settings.CONN_GUARD = {"BUDGET": budget}
        return make_alias(USER=make_role("CONNECTION LIMIT 20"), **values)

    return make


def test_W303_budget_tight(limited):
    said = found(limited({"processes": 2, "threads": 8, "other": 2}), deploy=True)
    role = said["W303"].split("role '")[1].split("'")[0]
    assert (
        said["W303"]
        == f"CONN_GUARD['BUDGET'] comes to 18 of the 20 slots of the role '{role}' (90%):\n"
        "    DATABASES['app']: 2 processes x 8 threads = 16\n"
        "    other: 2\n"
        "    room: its CONNECTION LIMIT 20 "
        "HINT: Leave a fifth of the slots free"
        + (", or bound the sum with OPTIONS['pool']." if CAN_POOL else ".")
    )
    assert "W304" not in said


def test_W304_budget_exceeded(make_alias, ask, settings):
    settings.CONN_GUARD = {"BUDGET": {"processes": 100, "threads": 8}}
    alias, replica = make_alias(), make_alias(TEST={"MIRROR": "default"})
    rows = ask(
        "SELECT name, setting::int FROM pg_settings WHERE setting <> '0' AND name IN"
        " ('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
    )
    limits = dict(rows)
    slots = (
        limits["max_connections"]
        - limits["superuser_reserved_connections"]
        - limits.get("reserved_connections", 0)
    )
    others = [name for name in connections.settings if name not in ("lite", alias, replica)]
    needed = 800 * (len(others) + 2)
    said = found(alias, deploy=True)
    assert "W303" not in said
    text = said["W304"].replace(replica, "replica")
    assert text.startswith(
        f"CONN_GUARD['BUDGET'] comes to {needed} of the {slots} slots of the server"
        f" ({needed / slots:.0%}):\n"
    )
    assert "\n    DATABASES['app']: 100 processes x 8 threads = 800\n" in text
    assert "\n    DATABASES['replica']: 100 processes x 8 threads = 800\n" in text
    assert (
        f"\n    room: max_connections {limits['max_connections']} - superuser_reserved_connections "
        in text
    )
    assert text.endswith(
        f" = {slots} HINT: Run fewer processes or threads,"
        + (" bound the sum with OPTIONS['pool']," if CAN_POOL else "")
        + " or raise the limit."
    )


def test_a_budget_with_room_to_spare_is_not_worth_a_word(limited):
    said = found(limited({"processes": 2, "threads": 8}), deploy=True)
    assert {"W303", "W304"}.isdisjoint(said)


def test_the_sum_is_told_once_for_aliases_on_one_server(make_alias, settings):
    settings.CONN_GUARD = {"BUDGET": {"processes": 100, "threads": 8}}
    every = [make_alias(), make_alias()]
    messages = run_checks(tags=["database"], databases=every, include_deployment_checks=True)
    assert [message.id for message in messages].count("conn_guard.W304") == 1


def test_the_databases_own_limit_counts(make_role, make_alias, session_factory, settings):
    execute = session_factory(application_name="test-databases").execute
    name = f"limited_{uuid.uuid4().hex[:12]}"
    execute(f"CREATE DATABASE {name} TEMPLATE template0 CONNECTION LIMIT 5")
    try:
        settings.CONN_GUARD = {"BUDGET": {"processes": 1, "threads": 8}}
        alias = make_alias(USER=make_role(), NAME=name)
        assert (
            f"comes to 8 of the 5 slots of the database '{name}' (160%):"
            in found(alias, deploy=True)["W304"]
        )
        connections[alias].close()
    finally:
        execute(f"DROP DATABASE {name} WITH (FORCE)")


@pools
def test_a_pool_bounds_the_sum(limited):
    alias = limited(
        {"processes": 2, "threads": 1}, OPTIONS={"pool": {"min_size": 1, "max_size": 9}}
    )
    assert "\n    DATABASES['app']: 2 processes x 9 connections of its pool = 18\n" in (
        said := found(alias, deploy=True)["W303"]
    )
    assert said.endswith("HINT: Leave a fifth of the slots free.")


@pytest.mark.parametrize(
    ("wsgi", "words"),
    [(None, "Under ASGI "), ("app.wsgi", "If an ASGI server serves the project, ")],
)
def test_under_asgi_the_sum_says_that_it_is_no_bound(limited, settings, wsgi, words):
    settings.ASGI_APPLICATION = "app.asgi"
    settings.WSGI_APPLICATION = wsgi
    said = found(limited({"processes": 2, "threads": 9}), deploy=True)["W303"]
    assert (
        f"\n    {words}the number of threads is not a limit: every request that runs at once may"
        " hold a connection; a pool would be a limit." in said
    )


def test_behind_a_pooler_the_poolers_limits_decide(make_role, make_alias, pgbouncer, settings):
    bouncer = pgbouncer("session")
    alias = make_alias(**bouncer.settings)
    settings.CONN_GUARD = {"BUDGET": {"processes": 100, "threads": 8}}
    assert "W304" not in found(alias, deploy=True)
    settings.CONN_GUARD = {**settings.CONN_GUARD, "POOLER": {alias: "session"}}
    assert "W304" in found(alias, deploy=True)
    settings.CONN_GUARD = {**settings.CONN_GUARD, "POOLER": {alias: "transaction"}}
    assert "W304" not in found(alias, deploy=True)


# The role


def test_I305_idle_in_transaction_unbounded(make_role, make_alias):
    role = make_role()
    assert (
        found(make_alias(USER=role), deploy=True)["I305"]
        == f"The role '{role}' of DATABASES['app'] has no idle_in_transaction_session_timeout. "
        f"HINT: ALTER ROLE {role} SET idle_in_transaction_session_timeout = '5min';"
    )
    bounded = make_role(idle_in_transaction_session_timeout="5min")
    assert "I305" not in found(make_alias(USER=bounded), deploy=True)


def test_W307_application_is_superuser(make_role, make_alias):
    role = make_role("SUPERUSER")
    assert (
        found(make_alias(USER=role), deploy=True)["W307"]
        == f"The role '{role}' of DATABASES['app'] is a superuser, so it can take the reserved"
        " slots. "
        f"HINT: If another superuser exists, ALTER ROLE {role} NOSUPERUSER, after giving it the"
        " rights that it needs."
    )
    assert "W307" not in found(make_alias(USER=make_role()), deploy=True)


def test_the_role_that_logged_in_takes_the_slot(make_role, make_alias):
    low = make_role()
    role = make_role(f"SUPERUSER IN ROLE {low}")
    assert (
        f"The role '{role}'"
        in found(make_alias(USER=role, OPTIONS={"assume_role": low}), deploy=True)["W307"]
    )


# The reaper


def test_W308_reaps_healthy(make_alias, settings):
    settings.CONN_GUARD = {"REAP_IDLE_FOR": timedelta(minutes=1)}
    alias = make_alias(CONN_MAX_AGE=60)
    text = (
        "CONN_GUARD['REAP_IDLE_FOR'] is 60 s and DATABASES['app']['CONN_MAX_AGE'] is 60, without"
        " CONN_HEALTH_CHECKS: the reaper would end healthy connections. HINT: Write"
        " CONN_HEALTH_CHECKS = True, or take the engine conn_guard.engine.postgresql."
    )
    assert found(alias)["W308"] == text
    (message,) = checks.reaping_messages([alias])
    assert message.id == "conn_guard.W308"
    settings.SILENCED_SYSTEM_CHECKS = ["conn_guard.W308"]
    assert list(checks.reaping_messages([alias])) == []


@pytest.mark.parametrize(
    "values",
    [
        {"CONN_MAX_AGE": 59},
        {"CONN_MAX_AGE": 0},
        {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True},
        {"CONN_MAX_AGE": None, "ENGINE": "conn_guard.engine.postgresql"},
        {"CONN_MAX_AGE": None, "ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
    ],
    ids=str,
)
def test_a_reaper_that_meets_no_healthy_connection_is_fine(make_alias, settings, values):
    settings.CONN_GUARD = {"REAP_IDLE_FOR": timedelta(minutes=1)}
    assert list(checks.reaping_messages([make_alias(**values)])) == []


@pools
def test_a_pool_of_an_hour_outlives_the_reapers_default(make_alias):
    assert "keeps them for 3600 s" in found(make_alias(OPTIONS={"pool": True}))["W308"]


# When they run


def test_nothing_is_asked_where_no_database_is_named(monkeypatch):
    monkeypatch.setattr(facts, "ask", lambda alias: pytest.fail("a check connected"))
    assert checks.session_checks() == []
    assert checks.deployment_checks() == []
    assert checks.session_checks(databases=None) == []
    # As `manage.py check` does; from Django 6.1 on the static checks get the aliases too.
    run_checks()
    run_checks(include_deployment_checks=True)


def test_what_is_for_deployments_stays_out_of_migrate(limited, capsys):
    alias = limited({"processes": 2, "threads": 9})
    assert {"W303", "I305"} <= set(found(alias, deploy=True))
    assert {"W303", "W304", "I305", "W307"}.isdisjoint(found(alias))
    call_command("check", databases=[alias])
    assert "conn_guard" not in capsys.readouterr().err
    call_command("check", deploy=True, databases=[alias])
    told = capsys.readouterr().err
    assert "conn_guard.W303" in told
    assert "\n    other" not in told
    assert "2 processes x 9 threads = 18" in told


def test_other_engines_are_left_alone(make_alias, monkeypatch):
    assert found("lite", deploy=True) == {}
    # An engine whose name doesn't show its database, which only the loaded engine knows.
    from django.db.backends.sqlite3 import base

    monkeypatch.setitem(sys.modules, "acme.base", base)
    assert found(make_alias(ENGINE="acme", NAME=":memory:"), deploy=True) == {}


def test_the_question_leaves_no_transaction_open(make_alias, ask, application_name):
    alias = make_alias(AUTOCOMMIT=False, OPTIONS={"application_name": application_name})
    found(alias)
    assert ask(
        "SELECT state FROM pg_stat_activity WHERE application_name = %s", [application_name]
    ) == [("idle",)]
