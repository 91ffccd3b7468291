"""A model without a table, so that the page has a place in the admin and permissions of its own."""

from __future__ import annotations

from django.db import models


class _NoRows(models.Manager["Session"]):
    """Finds nothing, so that ``manage.py dumpdata`` doesn't ask for the table."""

    def get_queryset(self) -> models.QuerySet[Session]:
        return super().get_queryset().none()


class Session(models.Model):
    """A session of a PostgreSQL server; no row of it is stored."""

    pid: models.IntegerField[int, int] = models.IntegerField(primary_key=True)

    objects = _NoRows()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view",)
        permissions = (("terminate_session", "Can terminate session"),)

    def __str__(self) -> str:
        return f"pid {self.pid}"
