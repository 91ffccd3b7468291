"""A program that hands each job named on its stdin to the framework, until stdin ends."""

import sys
from importlib import import_module

import django
from django.conf import settings

django.setup()

framework = import_module(f"tests.postgres.framework_site.with_{settings.FRAMEWORK}")
if hasattr(framework, "prepare"):
    framework.prepare()
sys.stdout.write("ready\n")
sys.stdout.flush()
for line in sys.stdin:
    framework.send(*line.split())
