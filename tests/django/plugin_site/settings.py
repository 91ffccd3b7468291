"""Settings with each kind of alias that the plugin meets."""

import os

import environ
from django import VERSION

ADDRESS = environ.Env().db_url("DATABASE_URL")
SECRET_KEY = "only for tests"
USE_TZ = True
ROOT_URLCONF = "urls"
STATIC_URL = "/static/"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    *os.environ.get("PLUGIN_APPS", "").split(),
]
MIGRATION_MODULES = {"contenttypes": None, "auth": None}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DEFAULT = {
    **ADDRESS,
    "ENGINE": os.environ.get("PLUGIN_ENGINE", ADDRESS["ENGINE"]),
    "TEST": {"NAME": os.environ["PLUGIN_DATABASE"]},
}
DATABASES = {
    "default": DEFAULT,
    "lasting": {**DEFAULT, "CONN_MAX_AGE": None},
    "file": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "file.sqlite3",
        "TEST": {"NAME": "test_file.sqlite3"},
    },
    "lite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
try:
    import psycopg_pool  # noqa: F401
except ImportError:
    HAS_POOL = False
else:
    HAS_POOL = VERSION >= (5, 1)
if HAS_POOL:
    DATABASES["pooled"] = {**DEFAULT, "OPTIONS": {"pool": {"min_size": 1, "max_size": 2}}}
