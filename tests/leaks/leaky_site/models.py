"""A model over rows that every PostgreSQL has, so that no migration is needed."""

from django.db import models


class Parameter(models.Model):
    name = models.TextField(primary_key=True)

    class Meta:
        managed = False
        db_table = "pg_settings"
