"""The static checks of CONN_GUARD and of the keys in DATABASES."""

from __future__ import annotations

import pytest
from django.db.utils import ConnectionHandler
from django.utils.functional import lazystr

from tests.django.checks_project import POSTGRES, alias, ids, said

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


# conn_guard's engine

OURS = {"ENGINE": "conn_guard.engine.postgresql"}


def test_W133_tenants_replacement():
    assert said("W133", alias(**OURS), INSTALLED_APPS=["django_tenants", "shop"]) == (
        "DATABASES['default'] uses conn_guard's engine beside django_tenants, which sets"
        " search_path on the session: a new session in place of an ended one would lose it."
        " HINT: Write CONN_GUARD['ENGINE_REPLACE'] = {'default': False}, and hold"
        " conn_guard.pin('default') while the tenant is set."
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"INSTALLED_APPS": ("shop", "tenant_schemas")},
        {"INSTALLED_APPS": ["django_tenants.apps.DjangoTenantsConfig"]},
        {"DATABASE_ROUTERS": ["django_tenants.routers.TenantSyncRouter"]},
    ],
)
@pytest.mark.parametrize("engine", ["conn_guard.engine.postgresql", "conn_guard.engine.postgis"])
def test_each_sign_of_tenants_is_seen_on_each_engine_of_ours(engine, settings):
    assert ids(alias(ENGINE=engine), **settings) == {"W133"}
    assert ids(alias(), **settings) == set()


def test_a_tenants_engine_on_top_of_ours_is_seen():
    tenants = alias(ENGINE="django_tenants.postgresql_backend")
    settings = {"INSTALLED_APPS": ["django_tenants"]}
    assert ids(tenants, **settings) == set()
    for engine in ("conn_guard.engine.postgresql", "conn_guard.engine.postgis"):
        assert ids(tenants, ORIGINAL_BACKEND=engine, **settings) == {"W133"}
    assert ids(tenants, ORIGINAL_BACKEND="django.db.backends.postgresql", **settings) == set()


def test_an_alias_whose_sessions_are_not_replaced_is_fine_for_tenants():
    settings = {"INSTALLED_APPS": ["django_tenants"]}
    for replace, expected in (
        ({"default": False}, set()),
        ({"default": True}, {"W133"}),
        ({"other": False}, {"W133"}),
    ):
        assert ids(alias(**OURS), CONN_GUARD={"ENGINE_REPLACE": replace}, **settings) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"INSTALLED_APPS": None, "DATABASE_ROUTERS": [object()]},
        {"INSTALLED_APPS": ["shop.django_tenants", "tenants"]},
    ],
)
def test_a_project_without_tenants_may_replace_sessions(settings):
    assert ids(alias(**OURS), **settings) == set()


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


def test_a_lazy_engine_is_an_engine():
    assert ids(alias(ENGINE=lazystr(POSTGRES), OPTIONS={"timeout": 20})) == {"E118"}


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
