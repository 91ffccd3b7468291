"""The static checks of CONN_MAX_AGE and of connections that outlive their request."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction

import django
import pytest
from django.utils.functional import SimpleLazyObject, lazy, lazystr

from tests.django.checks_project import CHECKED, POSTGRES, alias, ids, pools, said

# The value of CONN_MAX_AGE


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


@pytest.mark.parametrize(
    "lazily", [SimpleLazyObject, lambda make: lazy(make, int)()], ids=["SimpleLazyObject", "lazy"]
)
def test_a_lazy_age_counts_as_its_number(lazily, caplog):
    asgi = {"ASGI_APPLICATION": "app.asgi"}
    assert ids(alias(CONN_MAX_AGE=lazily(lambda: 60))) == {"I123"}
    assert ids(alias(CONN_MAX_AGE=lazily(lambda: 60), CONN_HEALTH_CHECKS=True), **asgi) == {"W120"}
    assert ids(alias(CONN_MAX_AGE=lazily(lambda: 0)), **asgi) == set()
    assert ids(alias(CONN_MAX_AGE=lazily(lambda: -1))) == {"W103"}
    assert caplog.text == ""


def test_a_lazy_age_that_cannot_be_added_is_an_error():
    for age in (SimpleLazyObject(lambda: "60"), SimpleLazyObject(lambda: None), lazystr("60")):
        assert ids(alias(CONN_MAX_AGE=age)) == {"E101"}


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


# Persistent connections


@pools
def test_W120_asgi_persistent():
    assert (
        said("W120", alias(**CHECKED), ASGI_APPLICATION="app.asgi.application")
        == "DATABASES['default']['CONN_MAX_AGE'] is 60 and the project is served by ASGI, where no"
        " later request finds the connection. HINT: Write 0 for CONN_MAX_AGE, and"
        " OPTIONS['pool'] if connections are to stay open."
    )


ASGI = {"ASGI_APPLICATION": "app.asgi.application"}


@pytest.mark.parametrize(
    ("driver", "version", "engine"),
    [
        ("psycopg", (4, 2, 30, "final", 0), POSTGRES),
        ("psycopg2", (6, 0, 0, "final", 0), POSTGRES),
        ("psycopg", (6, 0, 0, "final", 0), "django.db.backends.sqlite3"),
        ("psycopg", (5, 1, 0, "final", 0), "django.db.backends.oracle"),
    ],
)
def test_no_pool_is_advised_where_django_has_none(monkeypatch, driver, version, engine):
    monkeypatch.setattr(django, "VERSION", version)
    kept = alias(ENGINE=engine, **CHECKED)
    assert said("W120", kept, driver=driver, **ASGI).endswith("HINT: Write 0 for CONN_MAX_AGE.")
    pooled = alias(ENGINE=engine, OPTIONS={"pool": True})
    assert "E115" in ids(pooled, driver=driver, **ASGI)


@pytest.mark.parametrize("age", [60, 601, None])
def test_no_hint_under_asgi_asks_for_what_another_forbids(age):
    assert ids(alias(CONN_MAX_AGE=age), **ASGI) == {"W120", "I123"}
    assert said("I123", alias(CONN_MAX_AGE=age), **ASGI).endswith(
        "without CONN_HEALTH_CHECKS. HINT: Write 0 for CONN_MAX_AGE, as W120 says; 0 needs no"
        " health checks."
    )


def test_a_silenced_W120_leaves_the_word_to_W122():
    silenced = {"SILENCED_SYSTEM_CHECKS": ["conn_guard.W120"], **ASGI}
    assert ids(alias(CONN_MAX_AGE=None), **silenced) == {"W120", "W122"}
    assert said("I123", alias(CONN_MAX_AGE=60), **silenced).endswith(
        "HINT: Write CONN_HEALTH_CHECKS = True beside it."
    )


@pytest.mark.parametrize("engine", ["django.db.backends.sqlite3", "sqlcipher.backend"])
def test_a_file_leaks_under_asgi_too_and_needs_no_health_checks(engine):
    sqlite = alias(ENGINE=engine, CONN_MAX_AGE=60)
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


def test_an_engine_that_replaces_ended_sessions_needs_no_health_checks():
    ours = alias(ENGINE="conn_guard.engine.postgresql", CONN_MAX_AGE=None)
    assert ids(ours) == set()
    for replace, expected in ({"default": True}, set()), ({"default": False}, {"W122"}):
        assert ids(ours, CONN_GUARD={"ENGINE_REPLACE": replace}) == expected
    tenants = alias(ENGINE="django_tenants.postgresql_backend", CONN_MAX_AGE=None)
    assert ids(tenants) == {"W122"}
    assert "W122" not in ids(tenants, ORIGINAL_BACKEND="conn_guard.engine.postgresql")


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


def test_I131_debug_persistent():
    assert (
        said("I131", alias(**CHECKED), DEBUG=True)
        == "DATABASES['default']['CONN_MAX_AGE'] is 60 with DEBUG, and runserver never uses a"
        " connection twice. HINT: Write 0 for CONN_MAX_AGE in development."
    )
    assert ids(alias(**CHECKED), DEBUG=False) == set()
