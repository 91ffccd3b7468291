"""A session that a test opens beside Django's own connections."""

from __future__ import annotations

from typing import Any


class Session:
    """A session in autocommit, opened by Django's driver but not through Django."""

    def __init__(self, **parameters: object) -> None:
        from django.db.backends.postgresql.base import Database

        self.connection = Database.connect(**parameters)
        self.connection.autocommit = True
        self.application_name = parameters["application_name"]
        self.pid: int = self.execute("SELECT pg_backend_pid()")[0][0]

    def execute(self, statement: str, parameters: object = None) -> list[tuple[Any, ...]]:
        """Run *statement* and return its rows; BEGIN is a statement like any other."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self.connection.close()
