"""Django's PostgreSQL engine, guarded: ``ENGINE = "conn_guard.engine.postgresql"``."""
