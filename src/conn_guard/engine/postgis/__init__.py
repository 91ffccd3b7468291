"""``ENGINE = "conn_guard.engine.postgis"``: this room holds Django's PostGIS engine, guarded."""
