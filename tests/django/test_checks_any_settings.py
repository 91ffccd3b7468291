"""The checks and settings that hold anything: no error, one line, no secret."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conn_guard.checks.rules import RULES
from tests.django.checks_project import GUARD, LEVELS, alias, found, ids, project

words = str.split

ENGINES = st.sampled_from(
    [
        "django.db.backends.postgresql",
        "django.contrib.gis.db.backends.postgis",
        "conn_guard.engine.postgresql",
        "django_tenants.postgresql_backend",
        "django_db_geventpool.backends.postgresql_psycopg3",
        "django.db.backends.sqlite3",
        "django.db.backends.mysql",
        "django.db.backends.oracle",
        "mssql",
        "",
        None,
    ]
)
KEYS = st.sampled_from(
    words(
        "CONN_MAX_AGE CONN_HEALTH_CHECKS DISABLE_SERVER_SIDE_CURSORS ATOMIC_REQUESTS AUTOCOMMIT"
        " TIME_ZONE NAME USER PASSWORD HOST PORT TEST POOL POOL_OPTIONS conn_max_age MAX_CONN_AGE"
    )
)
OPTION_KEYS = st.sampled_from(
    words(
        "pool isolation_level options application_name host hostaddr port prepare_threshold service"
        " passfile CONN_MAX_AGE statement_timeout MAX_CONNS"
    )
)
POOL_KEYS = st.sampled_from(words("min_size max_size max_idle max_lifetime check timeout MAX_SIZE"))
TEXTS = [
    *(
        "60",
        "",
        "None",
        "False",
        "pgbouncer",
        "6432",
        "one,two",
        "db.pooler.supabase.com",
        "\x00\n",
        "é" * 80,
        "\ud800" * 70,
    ),
    *(
        "-c idle_session_timeout=1",
        "-c a=1 --b=2",
        "-c =",
        "-c idle_session_timeout=99999999999999999999d",
    ),
]
ODD = [
    10**400,
    -(10**300),
    Decimal("NaN"),
    Fraction(1, 3),
    1j,
    datetime.timedelta.max,
    object(),
    print,
    {1},
    range(3),
]

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.sampled_from(TEXTS)
    | st.sampled_from(ODD)
)
names = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=4,
)
pools = values | st.dictionaries(POOL_KEYS | names, values, max_size=3)
options = values | st.dictionaries(OPTION_KEYS | names, values | pools, max_size=4)
aliases = values | st.fixed_dictionaries(
    {"ENGINE": ENGINES | plain},
    optional={
        "OPTIONS": options,
        "CONN_MAX_AGE": plain,
        "HOST": values,
        "PORT": values,
        "TEST": values,
    },
).flatmap(
    lambda made: st.dictionaries(KEYS | names, values, max_size=3).map(
        lambda more: {**more, **made}
    )
)
projects = st.fixed_dictionaries(
    {"DATABASES": values | st.dictionaries(st.just("default") | names, aliases, max_size=3)},
    optional={
        "CONN_GUARD": (
            values
            | st.fixed_dictionaries(
                {
                    "POOLER": st.dictionaries(
                        st.just("default"), st.sampled_from(["session", "transaction"])
                    )
                }
            )
        ),
        "MIDDLEWARE": (
            values
            | st.lists(st.sampled_from([GUARD, "django.contrib.auth.middleware.X", 7]), max_size=3)
        ),
        "CONN_MAX_AGE": values,
        "CONN_HEALTH_CHECKS": values,
        "ASGI_APPLICATION": values,
        "WSGI_APPLICATION": values,
        "DEBUG": values,
        "INSTALLED_APPS": values | st.just(["django_tenants", "shop"]),
        "ORIGINAL_BACKEND": values | st.just("conn_guard.engine.postgresql"),
        "SILENCED_SYSTEM_CHECKS": values,
        "CACHES": values,
        "SESSION_ENGINE": values,
    },
)


@settings(max_examples=400, deadline=None)
@given(projects, st.sampled_from(["psycopg", "psycopg2", None]))
def test_no_rule_raises_whatever_the_settings_hold(made, driver):
    # The rules themselves, without the net that Rule.messages is.
    of = project(driver, **made)
    ids(made)
    for each in RULES.values():
        for subject in {"project": [of], "alias": of.aliases}.get(each.subject, ()):
            for message, hint in each.find(subject):
                assert message
                assert hint
                assert len(message.splitlines()) == 1, message
                assert len(message) < 1500, message


@pytest.mark.parametrize("number", [10**5000, -(10**5000)], ids=["huge", "-huge"])
def test_a_number_that_python_refuses_to_print_is_told(number, caplog):
    assert ids(alias(CONN_MAX_AGE=number)) == ({"W104", "W122"} if number > 0 else {"W103"})
    assert ids(
        alias(CONN_MAX_AGE=str(type(number)), PORT=number, OPTIONS={"isolation_level": number})
    ) == {"E101", "E119"}
    assert "could not look" not in caplog.text


class Hostile:
    """An object that refuses every question."""

    def _refuse(self, *args):
        raise RuntimeError("not for you")

    __bool__ = __str__ = __repr__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __float__ = (
        __len__
    ) = __iter__ = _refuse
    __hash__ = object.__hash__


@pytest.mark.parametrize("key", [*KEYS.elements, "ENGINE", "OPTIONS"])
def test_an_object_that_answers_nothing_stops_no_command(key):
    assert {message.level for message in found(alias(**{key: Hostile()}))} <= set(LEVELS)
    assert {
        message.level for message in found(alias(OPTIONS={key: Hostile(), "pool": Hostile()}))
    } <= set(LEVELS)


@pytest.mark.parametrize(
    "name", ["DATABASES", "MIDDLEWARE", "CONN_GUARD", "DEBUG", "CONN_MAX_AGE", "ASGI_APPLICATION"]
)
def test_a_setting_that_answers_nothing_stops_no_command(name):
    assert {message.level for message in found({**alias(CONN_MAX_AGE=60), name: Hostile()})} <= set(
        LEVELS
    )


SECRET = "hunter2-swordfish"
URL = f"postgres://app:{SECRET}@db:5432/app"
CONNINFO = f"host=db password={SECRET}"


@pytest.mark.parametrize(
    "values",
    [
        {"PASSWORD": SECRET},
        {"PASSWD": SECRET},
        {"ENGINE": URL},
        {"NAME": URL},
        {"HOST": URL},
        {"HOST": f"{URL}?pgbouncer", "PORT": 6432},
        {"PORT": f"6432@{SECRET}"},
        {"USER": f"app:{SECRET}"},
        {"CONN_MAX_AGE": URL},
        {"CONN_MAX_AGE": [URL, CONNINFO]},
        {"CONN_HEALTH_CHECKS": CONNINFO},
        {"POOL_OPTIONS": {"password": SECRET}},
        {"POOL": URL},
        {"CONNECTION_MAX_AGE": URL},
        {
            "OPTIONS": {
                "password": SECRET,
                "sslpassword": SECRET,
                "passwd": SECRET,
                "oauth_client_secret": SECRET,
            }
        },
        {"OPTIONS": {"CONN_MAX_AGE": SECRET, "statement_timeout": SECRET, "DATABASE_URL": URL}},
        {
            "OPTIONS": {
                "service": "app",
                "passfile": f"/run/{SECRET}",
                "options": f"-c app.secret={SECRET}",
            },
            "PORT": 6432,
        },
        {"OPTIONS": {"pool": URL}},
        {"OPTIONS": {"pool": {"conninfo": URL, "kwargs": {"password": SECRET}, "secret": SECRET}}},
        {"OPTIONS": {"pool": {"min_size": URL, "max_size": CONNINFO}}},
        {"OPTIONS": {"isolation_level": URL}},
        {"OPTIONS": {"prepare_threshold": CONNINFO}, "PORT": 6432},
        {"OPTIONS": {"application_name": URL * 3}},
        {"OPTIONS": {"conninfo": URL, "dsn": CONNINFO}},
        {"OPTIONS": URL},
        {"TEST": {"PASSWORD": SECRET}, "ENGINE": ""},
        {URL: 60, "ENGINE": ""},
    ],
)
@pytest.mark.parametrize("others", [{}, {"ASGI_APPLICATION": "app", "DEBUG": True}])
def test_no_message_holds_a_secret(values, others):
    messages = found(
        alias(**{"CONN_MAX_AGE": 60, **values}),
        CONN_MAX_AGE=URL,
        CONN_HEALTH_CHECKS=CONNINFO,
        **others,
    )
    assert messages
    assert SECRET not in "".join(f"{message.msg} {message.hint}" for message in messages)


def test_a_databases_that_is_a_url_is_not_shown():
    assert ids({"DATABASES": URL, "CONN_MAX_AGE": URL}) == set()
