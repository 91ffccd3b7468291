"""The tasks of the framework that the environment names; Huey and Procrastinate look here."""

from importlib import import_module

from django.conf import settings

if settings.FRAMEWORK:
    import_module(f"tests.postgres.framework_site.with_{settings.FRAMEWORK}")
