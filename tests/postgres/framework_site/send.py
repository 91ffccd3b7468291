"""A program that hands each job named on its stdin to the framework, until stdin ends."""

import sys
from importlib import import_module

import django

django.setup()

from django.conf import settings  # noqa: E402

framework = import_module(f"tests.postgres.framework_site.with_{settings.FRAMEWORK}")
if hasattr(framework, "prepare"):
    framework.prepare()
print("ready", flush=True)
for line in sys.stdin:
    framework.send(*line.split())
