"""The static checks of MIDDLEWARE, and the settings that deserve no finding."""

from __future__ import annotations

import os

import pytest

from tests.django.checks_project import CHECKED, GUARD, POSTGRES, alias, ids, said

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
        == f"MIDDLEWARE has {path!r}, which may query, before {GUARD!r}. HINT: Put {GUARD!r}"
        " first."
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
