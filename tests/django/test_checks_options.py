"""The static checks of OPTIONS."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import django
import pytest
from django.db.backends.postgresql.psycopg_any import IsolationLevel, is_psycopg3

from conn_guard.checks.engines import is_importable
from conn_guard.checks.project import Project
from tests.django.checks_project import POSTGRES, alias, ids, said


def test_E118_options_unknown():
    assert (
        said("E118", alias(OPTIONS={"statement_timeout": 5000}))
        == "DATABASES['default']['OPTIONS'] has 'statement_timeout', which is not a connection"
        " option of PostgreSQL. HINT: Take it out, or write a setting of the server as"
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
    }
    if django.VERSION >= (5, 1):
        own["pool"] = False
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
    monkeypatch.setattr("conn_guard.checks.engines.is_importable", lambda name: name in importable)
    assert Project(SimpleNamespace()).driver == driver


def test_a_stand_in_for_a_driver_counts_as_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "conn_guard_stand_in", SimpleNamespace(__spec__=None))
    assert is_importable("conn_guard_stand_in")
    assert not is_importable("conn_guard_no_such_module")


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


def test_I132_application_name_long():
    assert (
        said("I132", alias(OPTIONS={"application_name": "ä" * 32}))
        == "DATABASES['default'] has an application_name of 64 bytes, of which PostgreSQL keeps 63."
        " HINT: Write a shorter name."
    )
    assert ids(alias(OPTIONS={"options": f"-c application_name={'a' * 64}"})) == {"I132"}
    assert ids(alias(OPTIONS={"application_name": "a" * 63})) == set()
