"""The static checks of poolers."""

from __future__ import annotations

import pytest

from tests.django.checks_project import alias, ids, said

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
        "DATABASES['default'] seems to go through a pooler (the host is 'pgbouncer'); the settings"
        " don't show its mode. "
        """HINT: Declare it: CONN_GUARD['POOLER'] = {'default': "session"} or "transaction"."""
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
        """HINT: Use session mode and declare it: CONN_GUARD['POOLER'] = {'default': "session"}."""
    )
    assert ids(settings, CONN_GUARD={"POOLER": {"default": "session"}}) == set()


def test_tenants_that_are_rows_of_one_schema_share_a_pooler():
    assert ids(alias(ENGINE="django_multitenant.backends.postgresql", PORT=6432)) == {"I127"}


def test_W129_pooler_startup_options():
    settings = alias(
        PORT=6432,
        DISABLE_SERVER_SIDE_CURSORS=True,
        OPTIONS={"options": "-c statement_timeout=1000"},
    )
    assert (
        said("W129", settings)
        == "DATABASES['default']['OPTIONS']['options'] sets statement_timeout at login and goes"
        " through a pooler (the port is 6432). HINT: Set it on the server: ALTER ROLE ... SET"
        " statement_timeout = ..."
    )
    assert "W129" in ids(settings, CONN_GUARD={"POOLER": {"default": "session"}})


def test_what_is_no_setting_passes_the_login():
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
        "('aws-0-eu-central-1.pooler.supabase.com' at port 6543 is Supabase's transaction mode); "
        "requests fail once server_side_binding is True. "
        "HINT: Take it out of OPTIONS, or write None."
    )
    for prepares in ({"server_side_binding": True}, {"cursor_factory": object}):
        options = {"prepare_threshold": 0, **prepares}
        assert "transaction mode). HINT" in said(
            "W130", alias(DISABLE_SERVER_SIDE_CURSORS=True, OPTIONS=options, **SUPABASE)
        )
    assert (
        ids(
            alias(DISABLE_SERVER_SIDE_CURSORS=True, OPTIONS={"prepare_threshold": None}, **SUPABASE)
        )
        == set()
    )
    assert ids(settings, CONN_GUARD={"POOLER": {"default": "session"}}) == set()
