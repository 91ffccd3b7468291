"""Django's PostGIS engine, guarded: ``ENGINE = "conn_guard.engine.postgis"``."""
