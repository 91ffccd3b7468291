"""The static checks of pools."""

from __future__ import annotations

import inspect
from unittest import mock

import django
import pytest

from tests.django.checks_project import alias, ids, pools, said

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


@pytest.mark.parametrize("value", [pytest.param(False, marks=pools), None])
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


@pools
def test_I124_pool_no_health_checks():
    assert (
        said("I124", pool(DEFAULTS, CONN_HEALTH_CHECKS=False))
        == "DATABASES['default'] has a pool without CONN_HEALTH_CHECKS. HINT: Write"
        " CONN_HEALTH_CHECKS = True beside OPTIONS."
    )


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
        for value in (False, {}, ""):
            assert ids(pool(value, CONN_MAX_AGE=60)) == {"E115"}
        assert ids(pool(None, CONN_MAX_AGE=60)) == set()
        assert ids(pool(asked=False, ENGINE="acme.postgresql")) == set()


@pools
def test_a_pool_without_psycopg_pool_is_told(monkeypatch):
    monkeypatch.setattr(
        "conn_guard.checks.engines.is_importable", lambda name: name != "psycopg_pool"
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


@pytest.mark.parametrize("engine", ["mssql", "django_db_geventpool.backends.postgresql_psycopg3"])
def test_an_option_named_pool_of_another_engine_is_left_alone(engine):
    assert ids(alias(ENGINE=engine, OPTIONS={"pool": True})) == set()


@pools
def test_W116_pool_misplaced():
    assert (
        said("W116", alias(POOL_OPTIONS={"POOL_SIZE": 10}))
        == "DATABASES['default'] has the key 'POOL_OPTIONS', which the engine"
        " 'django.db.backends.postgresql' ignores. HINT: Write it into OPTIONS:"
        " DATABASES['default']['OPTIONS']['pool']."
    )
    assert ids(alias(pool=True)) == {"W116"}


def test_no_hint_asks_for_a_pool_where_django_has_none():
    mysql = alias(ENGINE="django.db.backends.mysql", POOL_OPTIONS={"POOL_SIZE": 10})
    assert "HINT: Take it out: Django has no pool for this engine." in said("W116", mysql)
    with mock.patch.object(django, "VERSION", (5, 0, 0, "final", 0)):
        assert "has no pool." in said("W116", alias(pool=True))


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
