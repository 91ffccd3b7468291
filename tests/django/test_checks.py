"""Every static check: one test an id, named by it, and the settings that a naive checker would flag
wrongly.
"""

from __future__ import annotations

import datetime
import inspect
import os
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import django
import pytest
from django.core import checks as django_checks
from django.core.checks import run_checks
from django.db.backends.postgresql.psycopg_any import IsolationLevel, is_psycopg3
from django.db.utils import ConnectionHandler

from conn_guard import checks
from conn_guard.checks.page import page
from conn_guard.checks.project import Project, _is_importable
from conn_guard.checks.table import RETIRED, RULES, rule
from conn_guard.text import shown

POSTGRES = "django.db.backends.postgresql"
GUARD = "conn_guard.middleware.ConnectionGuardMiddleware"
LEVELS = {django_checks.ERROR: "E", django_checks.WARNING: "W", django_checks.INFO: "I"}

pools = pytest.mark.skipif(
    django.VERSION < (5, 1) or not is_psycopg3, reason="Django pools from 5.1 on, with psycopg 3"
)


def project(driver="psycopg", **settings):
    """A project of these settings, with the middleware and a driver unless the test says
    otherwise.
    """
    made = Project(SimpleNamespace(**{"MIDDLEWARE": [GUARD], **settings}))
    made.__dict__["driver"] = driver
    return made


def alias(**values):
    """Settings with one alias of Django's PostgreSQL engine and these values."""
    return {"DATABASES": {"default": {"ENGINE": POSTGRES, "NAME": "app", "HOST": "db", **values}}}


def ids(settings, **others):
    return {
        message.id.removeprefix("conn_guard.")
        for message in checks.find(project(**settings, **others))
    }


def said(id, settings, **others):  # noqa: A002
    """What the check *id* says of these settings, in one text; the level is the id's letter and
    nothing is said twice.
    """
    (message,) = [
        each for each in checks.find(project(**settings, **others)) if each.id == f"conn_guard.{id}"
    ]
    assert LEVELS[message.level] == id[0]
    hint, address = message.hint.split(" See ")
    assert address == f"docs/reference/checks.md#{id.lower()}."
    return f"{message.msg} HINT: {hint}"


# CONN_GUARD


def test_E001_conn_guard_type():
    assert (
        said("E001", {"CONN_GUARD": ["CLOSE"]})
        == "CONN_GUARD is ['CLOSE'], not a dict. HINT: Write CONN_GUARD = {} or a dict of its"
        ' keys, such as {"CLOSE": "auto"}.'
    )


def test_E002_conn_guard_key():
    assert (
        said("E002", {"CONN_GUARD": {"REAP_IDEL_FOR": 60}})
        == "CONN_GUARD['REAP_IDEL_FOR'] is not a setting of conn_guard. HINT: Did you mean"
        " 'REAP_IDLE_FOR'?"
    )


def test_E003_conn_guard_value():
    assert (
        said("E003", {"CONN_GUARD": {"REAP_IDLE_FOR": "ten"}})
        == "CONN_GUARD['REAP_IDLE_FOR'] is 'ten', not a duration. HINT: Write"
        " timedelta(minutes=10), or 600 for seconds."
    )


# CONN_MAX_AGE


def test_E101_max_age_type():
    assert (
        said("E101", alias(CONN_MAX_AGE="60"))
        == "DATABASES['default']['CONN_MAX_AGE'] is '60', not a number of seconds or None. HINT:"
        " Write 60 for a minute, int(os.environ[...]) for a variable, or None without quotes for"
        " no limit."
    )


@pytest.mark.parametrize(
    "age", ["", "None", (60,), [60], datetime.timedelta(minutes=1), Decimal(60), {}, object(), 1j]
)
@pytest.mark.parametrize("engine", [POSTGRES, "django.db.backends.sqlite3", "acme.backend"])
def test_an_age_that_cannot_be_added_to_a_float_is_an_error_on_every_engine(age, engine):
    assert "E101" in ids(alias(CONN_MAX_AGE=age, ENGINE=engine))


@pytest.mark.parametrize("age", [0, 60, 60.5, None, False, Fraction(1, 2)])
def test_an_age_that_django_can_add_is_no_error(age):
    assert "E101" not in ids(alias(CONN_MAX_AGE=age))


def test_W102_max_age_bool():
    assert (
        said("W102", alias(CONN_MAX_AGE=True))
        == "DATABASES['default']['CONN_MAX_AGE'] is True, which is one second. "
        "HINT: Write a number of seconds, or None for no limit."
    )
    assert ids(alias(CONN_MAX_AGE=False)) == set()
    assert ids(alias(CONN_MAX_AGE=1)) == {"I123"}


def test_W103_max_age_negative():
    assert (
        said("W103", alias(CONN_MAX_AGE=-1))
        == "DATABASES['default']['CONN_MAX_AGE'] is -1, which acts as 0. "
        "HINT: Write None for no limit, or 0 to close after each request."
    )
    assert ids(alias(CONN_MAX_AGE=float("-inf"))) == {"W103"}


def test_W104_max_age_absurd():
    assert (
        said("W104", alias(CONN_MAX_AGE=10**400))
        == "DATABASES['default']['CONN_MAX_AGE'] is (a number of more than 20 digits), longer than"
        " a year. HINT: Write None for no limit, or a number of seconds."
    )


@pytest.mark.parametrize("age", [float("inf"), float("nan"), 31_536_001])
def test_an_age_that_no_process_reaches_is_absurd(age):
    assert ids(alias(CONN_MAX_AGE=age, CONN_HEALTH_CHECKS=True)) == {"W104"}


def test_an_age_that_django_can_compare_with_nothing_is_no_limit():
    assert ids(alias(CONN_MAX_AGE=float("nan"))) == {"W104", "W122"}


def test_a_year_is_not_absurd():
    assert "W104" not in ids(alias(CONN_MAX_AGE=31_536_000))


# Keys


def test_W105_key_misspelt():
    assert (
        said("W105", alias(CONNECTION_MAX_AGE=60))
        == "DATABASES['default'] has the key 'CONNECTION_MAX_AGE', which Django ignores. HINT:"
        " Write 'CONN_MAX_AGE'."
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("Max_CONN_AGE", "CONN_MAX_AGE"),
        ("conn_max_age", "CONN_MAX_AGE"),
        ("CONN_AGE", "CONN_MAX_AGE"),
        ("CONN-MAX-AGE", "CONN_MAX_AGE"),
        ("DB_CONN_MAX_AGE", "CONN_MAX_AGE"),
        ("MAX_CONNECTION_AGE", "CONN_MAX_AGE"),
        ("CONNECTION_HEALTH_CHECKS", "CONN_HEALTH_CHECKS"),
        ("CONN_HEALTH_CHECK", "CONN_HEALTH_CHECKS"),
        ("DISABLE_SERVERSIDE_CURSORS", "DISABLE_SERVER_SIDE_CURSORS"),
        ("ATOMIC_REQUEST", "ATOMIC_REQUESTS"),
    ],
)
def test_a_misspelling_names_what_was_meant(key, meant):
    assert said("W105", alias(**{key: 60})).endswith(f"Write {meant!r}.")


@pytest.mark.parametrize(
    "key",
    [
        "ENGINE",
        "TIME_ZONE",
        "AUTOCOMMIT",
        "OPTIONS",
        "TEST",
        "POOL_OPTIONS",
        "SCHEMA",
        "CONN_RETRIES",
        "MAX_CONNS",
        "",
        7,
    ],
)
def test_other_keys_are_not_misspellings(key):
    assert "W105" not in ids({"DATABASES": {"default": {"ENGINE": POSTGRES, key: {}}}})


def test_W106_key_at_top_level():
    assert (
        said("W106", alias(), CONN_MAX_AGE=60)
        == "The setting CONN_MAX_AGE is 60 beside DATABASES, where Django ignores it. "
        "HINT: Write it into the alias: DATABASES['default']['CONN_MAX_AGE']."
    )


@pytest.mark.parametrize("key", ["CONN_HEALTH_CHECKS", "DISABLE_SERVER_SIDE_CURSORS"])
def test_each_key_beside_databases_is_told(key):
    assert key in said("W106", alias(), **{key: True})


@pytest.mark.parametrize(
    "values",
    [
        {
            "CONN_MAX_AGE": 60,
            "CONN_HEALTH_CHECKS": True,
        },  # a variable of the module that the alias uses
        {"OPTIONS": {"CONN_MAX_AGE": 60}},  # E107 tells the place
        {"CONNECTION_MAX_AGE": 60},  # W105 tells the spelling
    ],
)
def test_a_variable_that_an_alias_uses_is_no_setting_at_top_level(values):
    assert "W106" not in ids(alias(**values), CONN_MAX_AGE=60)


def test_a_default_at_top_level_is_not_worth_a_word():
    assert ids(alias(), CONN_MAX_AGE=0, CONN_HEALTH_CHECKS=False) == set()


def test_what_django_fills_in_changes_nothing():
    filled = alias()
    ConnectionHandler(filled["DATABASES"])["default"]
    assert filled["DATABASES"]["default"]["CONN_MAX_AGE"] == 0
    assert ids(filled, CONN_MAX_AGE=60) == {"W106"}
    empty = {"DATABASES": {}}
    assert ConnectionHandler(empty["DATABASES"]).settings
    assert "TEST" in empty["DATABASES"]["default"]
    assert ids(empty) == set()


def test_E107_key_in_options():
    assert (
        said("E107", alias(OPTIONS={"conn_max_age": 60}))
        == "DATABASES['default']['OPTIONS'] has the key 'conn_max_age', which the driver doesn't"
        " know. HINT: Move it out of OPTIONS: DATABASES['default']['CONN_MAX_AGE']."
    )


@pytest.mark.parametrize(
    "engine", [POSTGRES, "django.db.backends.sqlite3", "django.db.backends.mysql", "acme.backend"]
)
def test_a_key_of_djangos_in_options_is_told_once_and_on_every_engine(engine):
    assert ids(alias(ENGINE=engine, OPTIONS={"ATOMIC_REQUESTS": True})) == {"E107"}


def test_E108_alias_without_engine():
    settings = alias()
    settings["DATABASES"]["defualt"] = {"CONN_HEALTH_CHECKS": True}
    assert (
        said("E108", settings)
        == "DATABASES['defualt'] has 'CONN_HEALTH_CHECKS' and no ENGINE. HINT: Did you mean the"
        " alias 'default'?"
    )
    settings["DATABASES"] = {"default": {"NAME": "app", "ENGINE": ""}}
    assert said("E108", settings).endswith("""HINT: Write its "ENGINE".""")


@pytest.mark.parametrize(
    "values", [{}, {"ENGINE": "django.db.backends.dummy"}, {"TEST": {"MIRROR": None}}]
)
def test_an_alias_that_says_nothing_is_meant_to_be_empty(values):
    assert ids({"DATABASES": {"default": values}}) == set()


def test_W109_flag_string():
    assert (
        said("W109", alias(CONN_HEALTH_CHECKS="False"))
        == "DATABASES['default']['CONN_HEALTH_CHECKS'] is the text 'False', which counts as True. "
        "HINT: Write True or False without quotes; cast a variable of the environment to bool."
    )


@pytest.mark.parametrize("key", ["DISABLE_SERVER_SIDE_CURSORS", "ATOMIC_REQUESTS"])
def test_each_flag_may_be_a_text(key):
    assert said("W109", alias(**{key: ""})).startswith(
        f"DATABASES['default'][{key!r}] is the text '', which counts as False."
    )


# Pools


DEFAULTS = True


def pool(asked, **values):
    return alias(OPTIONS={"pool": asked}, **{"CONN_HEALTH_CHECKS": True, **values})


@pools
def test_E110_pool_persistent():
    assert (
        said("E110", pool(DEFAULTS, CONN_MAX_AGE=60))
        == "DATABASES['default'] has a pool and CONN_MAX_AGE 60. "
        "HINT: Write 0 for CONN_MAX_AGE; the pool keeps connections open by itself."
    )


@pools
@pytest.mark.parametrize(
    ("age", "expected"),
    [(None, {"E110"}), (-1, {"E110", "W103"}), (0, set()), (False, set()), ("60", {"E101"})],
)
def test_a_pool_wants_an_age_of_0(age, expected):
    assert ids(pool(DEFAULTS, CONN_MAX_AGE=age)) == expected


@pools
@pytest.mark.parametrize(
    "engine", ["django_tenants.postgresql_backend", "django_prometheus.db.backends.postgresql"]
)
def test_a_pool_wants_an_age_of_0_in_subclasses_too(engine):
    assert ids(pool(DEFAULTS, CONN_MAX_AGE=60, ENGINE=engine)) == {"E110"}


@pytest.mark.parametrize("value", [False, None])
def test_no_pool_leaves_the_age_alone(value):
    assert ids(pool(value, CONN_MAX_AGE=60)) == set()


@pools
def test_E111_pool_type():
    assert (
        said("E111", pool("true"))
        == "DATABASES['default']['OPTIONS']['pool'] is 'true', neither True nor a dict. "
        'HINT: Write True, or a dict such as {"min_size": 2, "max_size": 4}.'
    )
    assert ids(pool(10)) == {"E111"}


@pools
def test_W112_pool_empty():
    assert (
        said("W112", pool({}))
        == "DATABASES['default']['OPTIONS']['pool'] is an empty dict, which switches the pool off. "
        "HINT: Write True for a pool with its defaults."
    )


@pools
def test_E113_pool_size():
    assert (
        said("E113", pool({"max_size": 2}))
        == "DATABASES['default']['OPTIONS']['pool'] has min_size 4 by default and max_size 2:"
        " max_size is below min_size. HINT: Write whole numbers, min_size not above max_size,"
        ' such as {"min_size": 2, "max_size": 4}.'
    )


@pools
@pytest.mark.parametrize(
    "sizes",
    [
        {"min_size": 0},
        {"min_size": -1, "max_size": 4},
        {"min_size": "2"},
        {"max_size": "8"},
        {"min_size": None},
        {"min_size": 2.0, "max_size": 4},
        {"min_size": 0, "max_size": 0},
        {"min_size": 5, "max_size": 4},
    ],
)
def test_sizes_that_the_pool_refuses(sizes):
    from psycopg_pool import ConnectionPool

    assert ids(pool(sizes)) == {"E113"}
    with pytest.raises((TypeError, ValueError)), ConnectionPool(open=False, **sizes) as refused:
        refused.wait(timeout=0.1)


@pools
@pytest.mark.parametrize(
    "sizes", [{"min_size": 2}, {"min_size": 0, "max_size": 1}, {"max_size": 4}, {"max_size": None}]
)
def test_sizes_that_the_pool_takes(sizes):
    from psycopg_pool import ConnectionPool

    ConnectionPool(open=False, **sizes)
    assert ids(pool(sizes)) == set()


@pools
def test_E114_pool_option():
    assert (
        said("E114", pool({"maxsize": 8}))
        == "DATABASES['default']['OPTIONS']['pool'] has 'maxsize', which psycopg_pool doesn't know."
        " HINT: Did you mean 'max_size'?"
    )
    assert (
        said("E114", pool({"check": None}))
        == "DATABASES['default']['OPTIONS']['pool'] has 'check', which Django gives to the pool"
        " itself. HINT: Write CONN_HEALTH_CHECKS = True."
    )


@pools
@pytest.mark.parametrize("key", ["kwargs", "open", "configure", "conninfo", "MIN_SIZE", "zzz", 7])
def test_options_that_the_pool_does_not_take(key):
    assert ids(pool({key: None})) == {"E114"}


@pools
def test_every_option_of_the_installed_pool_is_known():
    from psycopg_pool import ConnectionPool

    names = set(inspect.signature(ConnectionPool).parameters) - {
        "check",
        "configure",
        "conninfo",
        "kwargs",
        "open",
    }
    assert ids(pool(dict.fromkeys(names, 4))) == set()


@pools
@pytest.mark.parametrize(
    ("version", "expected"), [((6, 0), {"E114"}), ((6, 1), set())], ids=["6.0", "6.1"]
)
def test_a_check_of_ones_own_is_taken_from_django_6_1_on(version, expected):
    with mock.patch.object(django, "VERSION", version):
        assert ids(pool({"check": print})) == expected


def test_E115_pool_unsupported():
    assert (
        said("E115", alias(ENGINE="django.db.backends.mysql", OPTIONS={"pool": {"max_size": 10}}))
        == "DATABASES['default']['OPTIONS'] has 'pool' with the engine 'django.db.backends.mysql': "
        "Django has no pool for this engine. HINT: Take 'pool' out of OPTIONS."
    )


@pytest.mark.skipif(django.VERSION < (5, 1), reason="Django pools from 5.1 on")
def test_psycopg_2_has_no_pool():
    assert said("E115", pool(DEFAULTS, CONN_MAX_AGE=60), driver="psycopg2") == (
        "DATABASES['default']['OPTIONS'] has 'pool' with the engine"
        " 'django.db.backends.postgresql': psycopg 2 has no pool. "
        """HINT: Take 'pool' out of OPTIONS, or pip install "psycopg[pool]"."""
    )
    assert ids(pool(DEFAULTS, CONN_MAX_AGE=60), driver="psycopg2") == {"E115"}


def test_django_before_5_1_has_no_pool():
    with mock.patch.object(django, "VERSION", (4, 2, 30, "final", 0)):
        assert ids(pool(DEFAULTS, CONN_MAX_AGE=60)) == {"E115"}
        assert ids(pool(None, CONN_MAX_AGE=60)) == set()


@pools
def test_a_pool_without_psycopg_pool_is_told(monkeypatch):
    monkeypatch.setattr(
        "conn_guard.checks.project._is_importable", lambda name: name != "psycopg_pool"
    )
    assert "psycopg_pool can't be imported" in said("E115", pool(DEFAULTS))


def test_oracle_has_a_pool_from_django_5_2_on():
    oracle = alias(
        ENGINE="django.db.backends.oracle", OPTIONS={"pool": {"min": 1, "max": 4}}, CONN_MAX_AGE=60
    )
    assert ids(oracle) >= ({"E110"} if django.VERSION >= (5, 2) else {"E115"})


@pytest.mark.parametrize(
    "engine", ["django.db.backends.sqlite3", "django.contrib.gis.db.backends.spatialite"]
)
def test_sqlite_takes_no_pool_not_even_none(engine):
    assert ids(alias(ENGINE=engine, OPTIONS={"pool": False})) == {"E115"}


def test_W116_pool_misplaced():
    assert (
        said("W116", alias(POOL_OPTIONS={"POOL_SIZE": 10}))
        == "DATABASES['default'] has the key 'POOL_OPTIONS', which the engine"
        " 'django.db.backends.postgresql' ignores. HINT: Write it into OPTIONS:"
        " DATABASES['default']['OPTIONS']['pool']."
    )
    assert ids(alias(pool=True)) == {"W116"}


def test_W117_third_party_pool_persistent():
    settings = alias(
        ENGINE="django_db_geventpool.backends.postgresql_psycopg3",
        CONN_MAX_AGE=60,
        CONN_HEALTH_CHECKS=True,
    )
    assert (
        said("W117", settings) == "DATABASES['default']['CONN_MAX_AGE'] is 60 with the engine"
        " 'django_db_geventpool.backends.postgresql_psycopg3', which has a pool. HINT: Write 0"
        " for CONN_MAX_AGE."
    )


# OPTIONS


def test_E118_options_unknown():
    assert (
        said("E118", alias(OPTIONS={"statement_timeout": 5000}))
        == "DATABASES['default']['OPTIONS'] has 'statement_timeout', which is no connection option"
        " of PostgreSQL. HINT: Take it out, or write a setting of the server as"
        " OPTIONS['options'] = '-c statement_timeout=...'."
    )
    assert said("E118", alias(OPTIONS={"conect_timeout": 5})).endswith(
        "HINT: Did you mean 'connect_timeout'?"
    )


@pytest.mark.parametrize(
    "engine", [POSTGRES, "django.contrib.gis.db.backends.postgis", "conn_guard.engine.postgresql"]
)
@pytest.mark.parametrize(
    "key", ["MAX_CONNS", "timeout", "charset", "init_command", "POOL_OPTIONS", 7]
)
def test_options_of_other_engines_are_unknown(engine, key):
    assert ids(alias(ENGINE=engine, OPTIONS={key: 20})) == {"E118"}


@pytest.mark.skipif(not is_psycopg3, reason="asks psycopg 3")
def test_every_option_of_the_installed_libpq_is_known():
    from psycopg import pq

    names = [each.keyword.decode() for each in pq.Conninfo.get_defaults()]
    assert len(names) > 30
    assert ids(alias(OPTIONS=dict.fromkeys(names, "1"))) == set()


def test_what_django_takes_out_of_options_is_known():
    own = {
        "assume_role": "app",
        "server_side_binding": True,
        "isolation_level": IsolationLevel.SERIALIZABLE,
        "pool": False,
    }
    assert ids(alias(OPTIONS=own)) == set()


def test_each_driver_has_options_of_its_own():
    assert ids(alias(OPTIONS={"prepare_threshold": 5})) == set()
    assert ids(alias(OPTIONS={"prepare_threshold": 5}), driver="psycopg2") == {"E118"}
    assert ids(alias(OPTIONS={"connection_factory": 5})) == {"E118"}
    assert ids(alias(OPTIONS={"connection_factory": 5}), driver="psycopg2") == set()
    assert (
        ids(alias(OPTIONS={"connection_factory": 5, "prepare_threshold": 5}), driver=None) == set()
    )


@pytest.mark.parametrize(
    ("importable", "driver"),
    [({"psycopg", "psycopg2"}, "psycopg"), ({"psycopg2"}, "psycopg2"), (set(), None)],
    ids=["both", "psycopg2", "none"],
)
def test_django_takes_psycopg_3_wherever_it_can_be_imported(monkeypatch, importable, driver):
    monkeypatch.setattr("conn_guard.checks.project._is_importable", lambda name: name in importable)
    assert Project(SimpleNamespace()).driver == driver


def test_a_stand_in_for_a_driver_counts_as_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "conn_guard_stand_in", SimpleNamespace(__spec__=None))
    assert _is_importable("conn_guard_stand_in")
    assert not _is_importable("conn_guard_no_such_module")


def test_an_option_of_none_reaches_no_driver():
    assert ids(alias(OPTIONS={"statement_timeout": None})) == set()


def test_E119_isolation_level_type():
    assert (
        said("E119", alias(OPTIONS={"isolation_level": "serializable"}))
        == "DATABASES['default']['OPTIONS']['isolation_level'] is 'serializable', not an"
        " IsolationLevel. HINT: Write IsolationLevel.SERIALIZABLE; it is in"
        " django.db.backends.postgresql.psycopg_any."
    )


@pytest.mark.parametrize("level", list(IsolationLevel))
def test_an_isolation_level_is_fine(level):
    assert ids(alias(OPTIONS={"isolation_level": level})) == set()


@pytest.mark.parametrize("level", [None, 0, 9, "2", []])
def test_an_isolation_level_that_django_refuses(level):
    assert ids(alias(OPTIONS={"isolation_level": level})) == {"E119"}


# Persistent connections

CHECKED = {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}


def test_W120_asgi_persistent():
    assert (
        said("W120", alias(**CHECKED), ASGI_APPLICATION="app.asgi.application")
        == "DATABASES['default']['CONN_MAX_AGE'] is 60 and the project is served by ASGI, where no"
        " later request finds the connection. HINT: Write 0 for CONN_MAX_AGE, and"
        " OPTIONS['pool'] if connections are to stay open."
    )


def test_sqlite_leaks_under_asgi_too():
    sqlite = alias(ENGINE="django.db.backends.sqlite3", CONN_MAX_AGE=60)
    assert ids(sqlite, ASGI_APPLICATION="app.asgi.application") == {"W120"}
    assert ids(sqlite, WSGI_APPLICATION="app.wsgi.application") == set()


def test_I121_asgi_maybe_persistent():
    assert (
        said("I121", alias(**CHECKED), ASGI_APPLICATION="a", WSGI_APPLICATION="w")
        == "DATABASES['default']['CONN_MAX_AGE'] is 60, which leaks if the project is served by"
        " ASGI. "
        "HINT: Write 0 for CONN_MAX_AGE where an ASGI server serves the project."
    )


def test_W122_no_health_checks():
    assert (
        said("W122", alias(CONN_MAX_AGE=None))
        == "DATABASES['default']['CONN_MAX_AGE'] is None without CONN_HEALTH_CHECKS. "
        "HINT: Write CONN_HEALTH_CHECKS = True beside it."
    )
    assert ids(alias(CONN_MAX_AGE=601)) == {"W122"}


def test_I123_no_health_checks_short():
    assert (
        said("I123", alias(CONN_MAX_AGE=600))
        == "DATABASES['default']['CONN_MAX_AGE'] is 600 without CONN_HEALTH_CHECKS. "
        "HINT: Write CONN_HEALTH_CHECKS = True beside it."
    )


def test_health_checks_are_for_servers():
    assert ids(alias(ENGINE="django.db.backends.mysql", CONN_MAX_AGE=60)) == {"I123"}
    assert (
        ids(alias(ENGINE="django.contrib.gis.db.backends.spatialite", CONN_MAX_AGE=None)) == set()
    )
    # Our engine looks before it uses a connection.
    assert ids(alias(ENGINE="conn_guard.engine.postgresql", CONN_MAX_AGE=None)) == set()


@pools
def test_I124_pool_no_health_checks():
    assert (
        said("I124", pool(DEFAULTS, CONN_HEALTH_CHECKS=False))
        == "DATABASES['default'] has a pool without CONN_HEALTH_CHECKS. HINT: Write"
        " CONN_HEALTH_CHECKS = True beside OPTIONS."
    )


def test_W125_idle_timeout_shorter():
    settings = alias(
        CONN_MAX_AGE=60, OPTIONS={"options": "-c search_path=app -c idle_session_timeout=30000"}
    )
    assert (
        said("W125", settings)
        == "DATABASES['default']['OPTIONS']['options'] sets idle_session_timeout to 30 s, less than"
        " CONN_MAX_AGE 60, without CONN_HEALTH_CHECKS. HINT: Write CONN_HEALTH_CHECKS = True, or"
        " a CONN_MAX_AGE below the timeout."
    )


@pytest.mark.parametrize(
    "options",
    [
        "-cidle_session_timeout=30s",
        "--idle-session-timeout=30s",
        "-c IDLE_SESSION_TIMEOUT='30000'",
        "-c idle_session_timeout=2h -c idle_session_timeout=0.5min",
        r"-c idle_session_timeout=30\ s",
    ],
)
def test_a_timeout_is_read_as_the_server_reads_it(options):
    assert "W125" in ids(alias(CONN_MAX_AGE=60, OPTIONS={"options": options}))
    assert "W125" in ids(alias(CONN_MAX_AGE=None, OPTIONS={"options": options}))
    assert "W125" not in ids(
        alias(CONN_MAX_AGE=60, CONN_HEALTH_CHECKS=True, OPTIONS={"options": options})
    )
    assert "W125" not in ids(alias(OPTIONS={"options": options}))


@pytest.mark.parametrize("timeout", ["0", "60s", "2min", "1h", "1d", "soon", "", "30parsecs"])
def test_a_timeout_that_is_long_or_none_is_fine(timeout):
    assert "W125" not in ids(
        alias(CONN_MAX_AGE=60, OPTIONS={"options": f"-c idle_session_timeout={timeout}"})
    )


# Poolers

NEON = {"HOST": "ep-quiet-sun-1-pooler.eu-central-1.aws.neon.tech"}
SUPABASE = {"HOST": "aws-0-eu-central-1.pooler.supabase.com", "PORT": 6543}


def test_W126_cursors_txn_pooler():
    assert (
        said("W126", alias(**NEON))
        == "DATABASES['default'] goes through a pooler in transaction mode"
        " ('ep-quiet-sun-1-pooler.eu-central-1.aws.neon.tech' is Neon's pooler, in transaction"
        " mode) with server-side cursors. HINT: Write DISABLE_SERVER_SIDE_CURSORS = True."
    )
    assert ids(alias(**SUPABASE)) == {"W126"}
    assert ids(alias(), CONN_GUARD={"POOLER": {"default": "transaction"}}) == {"W126"}


def test_one_port_is_the_port_of_every_host():
    assert ids(alias(HOST=f"db,{SUPABASE['HOST']}", PORT=6543)) == {"W126"}
    assert ids(alias(HOST=f"db,{SUPABASE['HOST']}", PORT="5432,6543")) == {"W126"}
    assert ids(alias(HOST=f"db,{SUPABASE['HOST']},other", PORT="5432,5432")) == set()


@pytest.mark.parametrize("address", [NEON, SUPABASE])
def test_disabled_cursors_pass_a_pooler(address):
    assert ids(alias(DISABLE_SERVER_SIDE_CURSORS=True, **address)) == set()


def test_a_declared_session_mode_outweighs_the_name():
    assert ids(alias(**NEON), CONN_GUARD={"POOLER": {"default": "session"}}) == set()


def test_I127_pooler_suspected():
    assert said("I127", alias(HOST="pgbouncer")) == (
        "DATABASES['default'] seems to go through a pooler (the host is 'pgbouncer'), in a mode"
        " that settings don't tell. "
        """HINT: Say which: CONN_GUARD['POOLER'] = {'default': "session"} or "transaction"."""
    )


@pytest.mark.parametrize(
    "address",
    [
        {"PORT": "6432"},
        {"PORT": 6543},
        {"PORT": "5432,6432", "HOST": "one,two"},
        {"HOST": ["db", "PgCat.internal"]},
        {"HOST": "/var/run/odyssey"},
        {"HOST": "app-pooler-rw"},
        {"HOST": "", "OPTIONS": {"host": "pgbouncer"}},
        {"PORT": "", "OPTIONS": {"port": 6432}},
        {"HOST": "aws-0-eu-central-1.pooler.supabase.com", "PORT": 6432},
    ],
)
def test_an_address_that_is_a_poolers_by_custom(address):
    assert ids(alias(**address)) == {"I127"}


@pytest.mark.parametrize(
    "address",
    [
        {"HOST": "aws-0-eu-central-1.pooler.supabase.com", "PORT": 5432},
        {"HOST": "aws-0-eu-central-1.pooler.supabase.com"},
        {"PORT": 5432},
        {"PORT": None, "HOST": None},
        {"OPTIONS": {"service": "app"}},
        {"ENGINE": "django.db.backends.mysql", "PORT": 6432},
        {"ENGINE": "mssql", "HOST": "pooler"},
        {"ENGINE": "django.db.backends.sqlite3", "NAME": "pgbouncer.sqlite3"},
    ],
)
def test_an_address_that_is_no_poolers(address):
    assert ids(alias(**address)) == set()


def test_W128_tenants_pooler():
    settings = alias(
        ENGINE="django_tenants.postgresql_backend", PORT=6432, DISABLE_SERVER_SIDE_CURSORS=True
    )
    assert said("W128", settings) == (
        "DATABASES['default'] sets the tenant's schema for the session and goes through a pooler"
        " (the port is 6432). "
        """HINT: Use session mode, and say so: CONN_GUARD['POOLER'] = {'default': "session"}."""
    )
    assert ids(settings, CONN_GUARD={"POOLER": {"default": "session"}}) == set()


def test_W129_pooler_startup_options():
    settings = alias(
        PORT=6432,
        DISABLE_SERVER_SIDE_CURSORS=True,
        OPTIONS={"options": "-c statement_timeout=1000"},
    )
    assert (
        said("W129", settings)
        == "DATABASES['default']['OPTIONS']['options'] sets statement_timeout at log-in and goes"
        " through a pooler (the port is 6432). HINT: Set it on the server: ALTER ROLE ... SET"
        " statement_timeout = ..."
    )
    assert "W129" in ids(settings, CONN_GUARD={"POOLER": {"default": "session"}})


def test_what_is_no_setting_passes_the_log_in():
    for options in ("endpoint=ep-quiet-sun-1", "--cluster=quiet-sun-1"):
        assert (
            ids(alias(DISABLE_SERVER_SIDE_CURSORS=True, OPTIONS={"options": options}, **NEON))
            == set()
        )


def test_W130_prepared_pooler():
    settings = alias(DISABLE_SERVER_SIDE_CURSORS=True, OPTIONS={"prepare_threshold": 0}, **SUPABASE)
    assert (
        said("W130", settings)
        == "DATABASES['default']['OPTIONS']['prepare_threshold'] is 0 and goes through a pooler "
        "('aws-0-eu-central-1.pooler.supabase.com' at port 6543 is Supabase's transaction mode). "
        "HINT: Take it out of OPTIONS, or write None."
    )
    assert (
        ids(
            alias(DISABLE_SERVER_SIDE_CURSORS=True, OPTIONS={"prepare_threshold": None}, **SUPABASE)
        )
        == set()
    )
    assert ids(settings, CONN_GUARD={"POOLER": {"default": "session"}}) == set()


# Notes


def test_I131_debug_persistent():
    assert (
        said("I131", alias(**CHECKED), DEBUG=True)
        == "DATABASES['default']['CONN_MAX_AGE'] is 60 with DEBUG, and runserver never uses a"
        " connection twice. HINT: Write 0 for CONN_MAX_AGE in development."
    )
    assert ids(alias(**CHECKED), DEBUG=False) == set()


def test_I132_application_name_long():
    assert (
        said("I132", alias(OPTIONS={"application_name": "ä" * 32}))
        == "DATABASES['default'] has an application_name of 64 bytes, of which PostgreSQL keeps 63."
        " HINT: Write a shorter name."
    )
    assert ids(alias(OPTIONS={"options": f"-c application_name={'a' * 64}"})) == {"I132"}
    assert ids(alias(OPTIONS={"application_name": "a" * 63})) == set()


# MIDDLEWARE


def test_I201_middleware_absent():
    assert (
        said("I201", alias(), MIDDLEWARE=[])
        == f"MIDDLEWARE has no {GUARD!r}. HINT: Put it first in MIDDLEWARE."
    )
    assert ids({"DATABASES": {}}, MIDDLEWARE=[]) == set()


@pytest.mark.parametrize(
    "middleware", [[GUARD], (GUARD,), ["acme.middleware.OurConnectionGuardMiddleware"]]
)
def test_the_middleware_is_known_by_its_name(middleware):
    assert ids(alias(), MIDDLEWARE=middleware) == set()


def test_W202_middleware_twice():
    assert (
        said("W202", alias(), MIDDLEWARE=[GUARD, "acme.ConnectionGuardMiddleware"])
        == f"MIDDLEWARE has {GUARD!r} and 'acme.ConnectionGuardMiddleware'. HINT: Keep the first"
        " one alone."
    )


SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
CACHE = "django.middleware.cache.UpdateCacheMiddleware"
DATABASE_CACHE = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache"}}
LOCAL_CACHE = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}


def test_W203_middleware_late():
    path = "django.contrib.auth.middleware.AuthenticationMiddleware"
    assert (
        said("W203", alias(), MIDDLEWARE=[path, GUARD])
        == f"MIDDLEWARE has {path!r}, which may query, before {GUARD!r}. HINT: Put ours first."
    )
    assert (
        ids(alias(), MIDDLEWARE=["django.middleware.security.SecurityMiddleware", GUARD, path])
        == set()
    )


@pytest.mark.parametrize(
    ("path", "settings", "queries"),
    [
        (SESSIONS, {"SESSION_ENGINE": "django.contrib.sessions.backends.db"}, True),
        (SESSIONS, {"SESSION_ENGINE": "django.contrib.sessions.backends.cached_db"}, True),
        (SESSIONS, {"SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies"}, False),
        (
            SESSIONS,
            {"SESSION_ENGINE": "django.contrib.sessions.backends.cache", "CACHES": DATABASE_CACHE},
            True,
        ),
        (
            SESSIONS,
            {"SESSION_ENGINE": "django.contrib.sessions.backends.cache", "CACHES": LOCAL_CACHE},
            False,
        ),
        (CACHE, {"CACHES": DATABASE_CACHE}, True),
        (CACHE, {"CACHES": LOCAL_CACHE}, False),
        (CACHE, {"CACHES": None}, False),
    ],
)
def test_a_middleware_is_late_where_one_before_it_queries(path, settings, queries):
    settings = {"SESSION_CACHE_ALIAS": "default", "CACHE_MIDDLEWARE_ALIAS": "default", **settings}
    assert ids(alias(), MIDDLEWARE=[path, GUARD], **settings) == ({"W203"} if queries else set())


# What a naive checker flags


@pytest.mark.parametrize(
    "values",
    [
        {
            "ENGINE": "django_db_geventpool.backends.postgresql_psycopg3",
            "OPTIONS": {"MAX_CONNS": 20, "REUSE_CONNS": 10},
        },
        {
            "ENGINE": "dj_db_conn_pool.backends.postgresql",
            "POOL_OPTIONS": {"POOL_SIZE": 10, "RECYCLE": -1},
        },
        {"ENGINE": "django.contrib.gis.db.backends.postgis", **CHECKED},
        {
            "ENGINE": "django_tenants.postgresql_backend",
            "ORIGINAL_BACKEND": "django.db.backends.postgresql",
            **CHECKED,
        },
        {"ENGINE": "psqlextra.backend", **CHECKED},
        {"ENGINE": "timescale.db.backends.postgresql", **CHECKED},
        {
            "ENGINE": "django_cockroachdb",
            "PORT": "26257",
            "OPTIONS": {"options": "--cluster=quiet-sun-1"},
            **CHECKED,
        },
        {"ENGINE": "django.db.backends.oracle", "OPTIONS": {"threaded": True}, **CHECKED},
        {"ENGINE": "mssql", "OPTIONS": {"driver": "ODBC Driver 18 for SQL Server"}, **CHECKED},
        {"CONN_HEALTH_CHECKS": True},
        {"CONN_MAX_AGE": 60.5, "CONN_HEALTH_CHECKS": True},
        {"TEST": {"MIRROR": "default", "NAME": None}, **CHECKED},
        {"HOST": "", "PORT": "", "NAME": "", "OPTIONS": {"service": "app", "passfile": ".pgpass"}},
        {
            "OPTIONS": {
                "sslmode": "require",
                "options": "-c search_path=public",
                "application_name": "app",
            }
        },
        {"OPTIONS": None},
        {"OPTIONS": "sslmode=require"},
    ],
)
def test_nothing_is_said_of_what_is_right(values):
    assert ids(alias(**values), WSGI_APPLICATION="app.wsgi.application") == set()


def test_settings_made_of_urls_are_read_as_django_reads_them():
    environ = pytest.importorskip("environ")
    url = "postgres://app:x@db:5432/app"
    made = environ.Env.db_url_config(f"{url}?conn_max_age=60&conn_health_checks=True")
    assert ids({"DATABASES": {"default": made}}) == set()
    made = environ.Env.db_url_config(f"{url}?conn_max_age=none&conn_health_checks=false&pool=true")
    assert {"E101", "W109"} <= ids({"DATABASES": {"default": made}})
    # As dj-database-url 3 makes them, with the arguments conn_max_age and conn_health_checks, and
    # with a query.
    made = {
        "ENGINE": POSTGRES,
        "NAME": "app",
        "PORT": 5432,
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
    }
    assert ids({"DATABASES": {"default": {**made, "DISABLE_SERVER_SIDE_CURSORS": False}}}) == set()
    assert ids({"DATABASES": {"default": {**made, "OPTIONS": {"conn_max_age": "60"}}}}) == {"E107"}


def test_an_uncast_variable_is_wrong_once_it_is_set(monkeypatch):
    def settings():
        return alias(CONN_MAX_AGE=os.environ.get("TEST_CONN_MAX_AGE", 60), CONN_HEALTH_CHECKS=True)

    monkeypatch.delenv("TEST_CONN_MAX_AGE", raising=False)
    assert ids(settings()) == set()
    monkeypatch.setenv("TEST_CONN_MAX_AGE", "60")
    assert ids(settings()) == {"E101"}


def test_every_alias_is_read():
    databases = {
        "default": {"ENGINE": POSTGRES},
        "replica": {"ENGINE": POSTGRES, "CONN_MAX_AGE": "60"},
    }
    assert "DATABASES['replica']" in said("E101", {"DATABASES": databases})


@pytest.mark.parametrize(
    "databases", [None, [], "postgres://app:x@db/app", {"default": "postgres://app:x@db/app"}]
)
def test_databases_that_are_no_dict_are_left_to_django(databases):
    assert ids({"DATABASES": databases}) == set()


# The table and Django


def test_an_id_is_never_taken_twice(monkeypatch):
    def find(project):
        return []

    words = {"subject": "project", "django": "", "cure": ""}
    with pytest.raises(ValueError, match=r"E101 is taken\."):
        rule("E101", "again", **words)(find)
    monkeypatch.setitem(RETIRED, "W199", "It went.")
    with pytest.raises(ValueError, match=r"W199 is taken\."):
        rule("W199", "again", **words)(find)


def test_every_id_has_a_test_of_its_own_and_words_of_its_own():
    folder = Path(__file__).parents[1]
    tests = (folder / "django/test_checks.py").read_text() + (
        folder / "postgres/test_server_checks.py"
    ).read_text()
    assert [id for id in RULES if f"def test_{id}_" not in tests] == []  # noqa: A001
    assert all(each.why and each.django and each.cure for each in RULES.values())
    assert len({each.slug for each in RULES.values()}) == len(RULES)
    assert len(RULES) == 45


PAGE = Path(__file__).parents[2] / "docs/reference/checks.md"


def test_the_reference_page_is_what_the_table_says():
    assert page() == PAGE.read_text(), "run: python -m conn_guard.checks > docs/reference/checks.md"
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[2] / "src")}
    command = [sys.executable, "-m", "conn_guard.checks"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert printed.stdout == PAGE.read_text()


def test_every_address_in_a_hint_is_a_heading_of_the_page():
    headings = {
        line.removeprefix("### ").lower()
        for line in PAGE.read_text().splitlines()
        if line.startswith("### ")
    }
    assert {each.lower() for each in RULES} <= headings


def test_a_retired_id_keeps_its_paragraph(monkeypatch):
    monkeypatch.setitem(RETIRED, "W199", "W122 took its place.")
    assert page().endswith("## Retired\n\n### W199\n\nW122 took its place.\n")


def test_a_rule_that_fails_says_nothing_and_is_logged(caplog):
    class Hostile(dict):
        def __bool__(self):
            raise RuntimeError("no")

    assert ids(alias(CONN_HEALTH_CHECKS=Hostile(), CONN_MAX_AGE=60)) == set()
    assert "conn_guard.I123 could not look" in caplog.text


def test_the_checks_are_bound_to_django(settings):
    settings.CONN_GUARD = {"CLOSE": "sometimes"}
    found = run_checks(tags=["conn_guard"])
    assert "conn_guard.E003" in [message.id for message in found]
    assert [message.id for message in checks.run_static()] == [message.id for message in found]
    settings.SILENCED_SYSTEM_CHECKS = ["conn_guard.E003"]
    assert "conn_guard.E003" not in [message.id for message in checks.run_static()]


def test_a_process_that_cannot_be_watched_starts_all_the_same(monkeypatch, caplog):
    monkeypatch.setattr("conn_guard.checks.startup.watch", lambda: 1 / 0)
    checks.watch()
    assert "This process is not watched." in caplog.text


def test_no_engine_is_imported_and_no_connection_is_touched():
    settings = alias(ENGINE="no.such.engine", CONN_MAX_AGE="60")
    ids(settings)
    loaded = set(sys.modules)
    touched = AssertionError("a static check touched django.db.connections")
    with mock.patch(
        "django.utils.connection.BaseConnectionHandler.__getitem__", side_effect=touched
    ):
        assert ids(settings) == {"E101"}
    assert set(sys.modules) == loaded
    assert settings["DATABASES"]["default"].keys() == {"ENGINE", "NAME", "HOST", "CONN_MAX_AGE"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 100, repr("x" * 77 + "...")),
        ("two\nlines", r"'two\nlines'"),
        ((1,), "(1,)"),
        ([1, "a"], "[1, 'a']"),
        ([[1]], "[...]"),
        ([1, 2, 3, 4], "(a list)"),
        (10**20, "(a number of more than 20 digits)"),
        ({}, "(a dict)"),
        ("postgres://app:x@db/app", "(a text that may hold a secret)"),
    ],
)
def test_a_value_is_shown_on_one_short_line(value, text):
    assert shown(value) == text
