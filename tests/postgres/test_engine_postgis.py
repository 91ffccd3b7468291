"""The PostGIS engine on a server with PostGIS: types, queries, ended sessions and pools."""

from __future__ import annotations

import gc
from datetime import timedelta
from importlib import import_module
from threading import Thread

import pytest
from django.core.management import call_command
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from tests.support.engine import BROKEN, pooled
from tests.support.own_server import own_server
from tests.support.programs import require_postgis

BERLIN = (13.4, 52.5)


@pytest.fixture(scope="module")
def started(django_db_blocker):
    """A server whose database postgres has PostGIS."""
    with pytest.MonkeyPatch.context() as patch, django_db_blocker.unblock():
        patch.setenv("PG_BINDIR", str(require_postgis()))
        with own_server() as server:
            server.ask("CREATE EXTENSION postgis")
            yield server


@pytest.fixture
def make_gis(server, make_engine):
    """Return a function that adds an alias of that server on the PostGIS engine."""

    def make(**settings):
        settings = {"NAME": "postgres", "USER": "postgres", "PASSWORD": "", **settings}
        address = {"HOST": server.server.host, "PORT": str(server.server.port)}
        alias = make_engine(engine="conn_guard.engine.postgis", **address, **settings)
        alias.ask = server.ask
        return alias

    return make


@pytest.fixture
def gis(make_gis):
    return make_gis(CONN_MAX_AGE=None)


@pytest.fixture
def empty(server, make_gis):
    """An alias of a database without PostGIS."""
    server.ask("CREATE DATABASE plain")
    yield (alias := make_gis(CONN_MAX_AGE=None, NAME="plain"))
    alias.wrapper.close()
    server.ask("DROP DATABASE plain WITH (FORCE)")


@pytest.fixture
def shop_model(settings):
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "tests.postgres.gis_site"]
    return import_module("tests.postgres.gis_site.models").Shop


@pytest.fixture
def shops(gis, shop_model):
    """The shops in a table of their own, with one row."""
    from django.contrib.gis.geos import Point

    with gis.wrapper.schema_editor() as editor:
        editor.create_model(shop_model)
    # The connection that ran DDL is not replaced.
    gis.wrapper.close()
    point = Point(*BERLIN, srid=4326)
    shop_model.objects.using(gis.name).create(place=point, entrance=point)
    yield shop_model.objects.using(gis.name)
    gis.ask("DROP TABLE gis_site_shop")


def near(shops):
    """Return the places within 20 km; the query sends a geometry and a geography."""
    from django.contrib.gis.geos import Point, Polygon
    from django.contrib.gis.measure import D

    here = Point(13.5, 52.5, srid=4326)
    found = shops.filter(
        place__within=Polygon.from_bbox((0, 0, 60, 60)), entrance__distance_lte=(here, D(km=20))
    )
    return [shop.place.coords for shop in found]


# Queries


def test_a_project_migrates_a_database_without_postgis(empty, shop_model):
    call_command("migrate", database=empty.name, run_syncdb=True, verbosity=0)
    assert empty.query("SELECT type FROM geometry_columns") == [("POINT",)]
    assert near(shop_model.objects.using(empty.name)) == []


def test_spatial_queries_leave_a_session_that_can_be_replaced(gis, shops):
    from django.contrib.gis.db.models import Collect, Extent, functions

    def query():
        assert near(shops) == [BERLIN]
        assert shops.aggregate(Extent("place"), Collect("place"))["place__extent"]
        for name in ("AsGeoJSON", "Centroid", "GeoHash", "GeometryType", "IsValid", "MakeValid"):
            # Django 6.0 brought GeometryType.
            if function := getattr(functions, name, None):
                assert shops.annotate(it=function("place")).get().it
        assert gis.wrapper.ops.postgis_lib_version()

    for _ in range(2):
        query()
        gis.end_sessions()


def test_a_copy_runs_spatial_queries_and_is_closed_when_dropped(gis, shops):
    copy = gis.wrapper.copy()
    gis.wrapper.close()
    for _ in range(2):
        with copy.cursor() as cursor:
            cursor.execute("SELECT ST_AsText(place) FROM gis_site_shop")
            assert cursor.fetchall() == [("POINT(13.4 52.5)",)]
        gis.end_sessions()
    with copy.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert len(gis.sessions()) == 1
    del copy, cursor
    gc.collect()
    assert gis.becomes(0)


@pytest.mark.parametrize(
    "statement", ["SET ROLE pg_monitor", "SELECT set_config('app.tenant', '5', false)"]
)
def test_a_session_that_held_state_gives_the_caller_the_error(gis, statement):
    gis.query(statement)
    gis.end_sessions()
    with pytest.raises(BROKEN):
        gis.query()


def test_a_thread_that_ends_leaves_no_session(gis, shops):
    gis.wrapper.close()
    found = []
    threads = [Thread(target=lambda: found.append(near(shops))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [[BERLIN]] * 5
    assert gis.becomes(0)


def test_an_unused_connection_is_closed_in_spite_of_postgis_types(make_gis, settings):
    settings.CONN_GUARD = {"ENGINE_IDLE_FOR": timedelta(seconds=0.1)}
    alias = make_gis()
    alias.query("SELECT 'POINT(1 2)'::geometry")
    assert alias.becomes(0)


# Types


def test_the_connection_that_created_the_extension_is_replaced(empty):
    from django.contrib.gis.geos import Point

    empty.wrapper.prepare_database()
    empty.end_sessions()
    point = empty.wrapper.ops.Adapter(Point(*BERLIN, srid=4326))
    assert empty.query("SELECT ST_X(%s)", [point]) == [(13.4,)]


@pytest.mark.skipif(not is_psycopg3, reason="psycopg 3's own objects")
def test_types_of_the_application_still_prevent_replacement_after_create_extension(empty):
    from psycopg.types.string import TextLoader

    empty.query()
    empty.wrapper.connection.adapters.register_loader("int4", TextLoader)
    empty.wrapper.prepare_database()
    empty.end_sessions()
    with pytest.raises(BROKEN):
        empty.query()


# Pools


def test_a_pool_whose_sessions_ended_before_their_first_use_hands_out_others(make_gis, shops):
    alias = pooled(make_gis, min_size=2)
    alias.wrapper.pool.open(wait=True)
    for _ in range(2):
        alias.end_sessions()
        for _ in range(3):
            assert near(shops.using(alias.name)) == [BERLIN]
            alias.wrapper.close()


def test_a_connection_in_use_from_a_pool_is_replaced(make_gis, shops):
    alias = pooled(make_gis, max_size=1)
    for _ in range(3):
        assert near(shops.using(alias.name)) == [BERLIN]
        alias.end_sessions()


def test_a_connection_whose_types_can_not_be_read_returns_its_slot(make_gis, server):
    def make(options):
        return make_gis(options={**options, "options": "-c lock_timeout=50ms"})

    alias = pooled(make, max_size=1)
    alias.wrapper.pool.open(wait=True)
    blocker = server.session("postgres")
    blocker.execute("BEGIN")
    blocker.execute("LOCK pg_catalog.pg_type IN ACCESS EXCLUSIVE MODE")
    for _ in range(2):
        with pytest.raises(BROKEN, match="lock timeout"):
            alias.wrapper.ensure_connection()
    blocker.execute("ROLLBACK")
    assert alias.query("SELECT ST_AsText('POINT(1 2)'::geometry)") == [("POINT(1 2)",)]
