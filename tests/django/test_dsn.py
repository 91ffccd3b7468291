"""A DSN becomes the settings of an alias, as libpq reads it."""

from __future__ import annotations

import pytest

from conn_guard.management.dsn import DSNError, alias_settings, holds_password

FULL = {"NAME": "shop", "USER": "app", "PASSWORD": "p@ss/word", "HOST": "db", "PORT": "5433"}


def settings(dsn: str, **environ: str) -> dict[str, object]:
    alias = alias_settings(dsn, environ)
    assert alias.pop("ENGINE") == "django.db.backends.postgresql"
    return {key: value for key, value in alias.items() if value}


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:p%40ss%2Fword@db:5433/shop",
        "postgres://app:p%40ss%2Fword@db:5433/shop",
        "postgis://app:p%40ss%2Fword@db:5433/shop",
        "postgresql+psycopg://app:p%40ss%2Fword@db:5433/shop",
        "postgres://app:p%40ss%2Fword@db:5433/shop?conn_max_age=60&CONN_HEALTH_CHECKS=true",
        "host=db port=5433 user=app password='p@ss/word' dbname=shop",
    ],
)
def test_urls_and_connection_strings_are_read_alike(dsn):
    assert settings(dsn) == FULL


def test_parameters_of_libpq_go_to_options():
    read = settings("postgresql://app@db/shop?sslmode=require&target_session_attrs=read-write")
    assert read["OPTIONS"] == {"sslmode": "require", "target_session_attrs": "read-write"}


def test_a_directory_is_a_host():
    expected = {"NAME": "shop", "USER": "app", "HOST": "/run/postgresql"}
    assert settings("postgresql://app@%2Frun%2Fpostgresql/shop") == expected
    assert settings("postgresql://app@/shop?host=/run/postgresql") == expected


def test_several_hosts_are_kept():
    read = settings("postgresql://app@one:5433,two:5434/shop")
    assert (read["HOST"], read["PORT"]) == ("one,two", "5433,5434")


def test_an_ipv6_address_is_a_host():
    assert settings("postgresql://app@[::1]:5433/shop")["HOST"] == "::1"


@pytest.mark.parametrize(
    ("dsn", "environ"),
    [("service=shop", {}), ("", {"PGSERVICE": "shop"}), ("postgresql://?service=shop", {})],
)
def test_a_service_names_the_database(dsn, environ):
    assert settings(dsn, **environ) == {"OPTIONS": {"service": "shop"}}


@pytest.mark.parametrize(
    ("dsn", "environ", "name"),
    [
        ("", {"PGDATABASE": "shop", "PGUSER": "app"}, "shop"),
        ("", {"PGUSER": "app"}, "app"),
        ("postgresql://app@db", {"PGUSER": "other"}, "app"),
        ("postgresql://app@db", {"PGDATABASE": "shop"}, "shop"),
    ],
)
def test_without_a_name_the_database_is_libpqs_default(dsn, environ, name):
    assert settings(dsn, **environ)["NAME"] == name


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:se%cret@db/shop",
        "postgresql://app:secret@db:port/shop",
        "postgresql://app:top@secret@db/shop",
        "postgresql://app:top/secret@db/shop",
        "postgresql://app:secret@db/shop?colour=red",
        "secret",
        "host=db password='secret",
        "mysql://app:secret@db/shop",
        "sqlite:///secret.db",
    ],
)
def test_a_dsn_that_cannot_be_read_is_refused_without_showing_it(dsn):
    with pytest.raises(DSNError) as caught:
        alias_settings(dsn, {})
    assert "secret" not in str(caught.value)
    assert "postgresql://USER@HOST:PORT/DATABASE" in str(caught.value)


def test_a_password_is_found_wherever_it_stands():
    assert holds_password("postgresql://app:secret@db/shop")
    assert holds_password("postgresql://app@db/shop?password=secret")
    assert holds_password("host=db password=secret")
    assert not holds_password("postgresql://app@db/shop")
