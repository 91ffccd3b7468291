"""``ENGINE = "conn_guard.engine.postgresql"``: this room holds Django's PostgreSQL engine,
guarded.
"""
