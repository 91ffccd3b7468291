"""A model with a geometry and a geography."""

from django.contrib.gis.db import models


class Shop(models.Model):
    place = models.PointField()
    entrance = models.PointField(geography=True)
