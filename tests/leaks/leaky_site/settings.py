"""The settings of the leaky project; environment variables choose among them."""

import os
from urllib.parse import unquote, urlsplit

COLUMN = os.environ.get("LEAKS_COLUMN", "django")
SETTING = os.environ.get("LEAKS_SETTING", "0")
"""CONN_MAX_AGE as it is written in Python, or ``pool`` for Django's own pool."""

_url = urlsplit(os.environ["LEAKS_DATABASE_URL"])
_options = {"application_name": os.environ.get("LEAKS_APPLICATION_NAME", "leaks")}
if SETTING == "pool":
    _options["pool"] = {"min_size": 0, "max_size": 10, "timeout": 2, "max_idle": 0.3}
_alias = {
    "ENGINE": "conn_guard.engine.postgresql"
    if COLUMN == "engine"
    else "django.db.backends.postgresql",
    "HOST": _url.hostname,
    "PORT": _url.port or 5432,
    "USER": unquote(_url.username or ""),
    "PASSWORD": unquote(_url.password or ""),
    "NAME": unquote(_url.path.lstrip("/")),
    "CONN_MAX_AGE": {"0": 0, "pool": 0, "60": 60, "None": None}[SETTING],
    "OPTIONS": _options,
}
DATABASES = {
    name: dict(_alias) for name in os.environ.get("LEAKS_ALIASES", "default,second").split(",")
}
DATABASES["default"]["ATOMIC_REQUESTS"] = "LEAKS_ATOMIC_REQUESTS" in os.environ

ALLOWED_HOSTS = ["*"]
DEBUG = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["tests.leaks.leaky_site"]
# What a project has besides; it makes no query of its own.
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "tests.leaks.leaky_site.urls"
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "UNAUTHENTICATED_USER": None,
}
SECRET_KEY = "the leaky project keeps no secrets"
USE_TZ = True
WSGI_APPLICATION = "tests.leaks.leaky_site.wsgi.application"

if "LEAKS_SYNC_MIDDLEWARE" in os.environ:
    MIDDLEWARE.append("tests.leaks.leaky_site.views.sync_only_middleware")
if COLUMN != "django":
    INSTALLED_APPS.append("conn_guard")
if COLUMN in ("middleware", "engine"):
    MIDDLEWARE.insert(0, "conn_guard.middleware.ConnectionGuardMiddleware")
if COLUMN == "engine":
    # A second instead of the default minute, so that the matrix need not rest that long.
    CONN_GUARD = {"ENGINE_IDLE_FOR": 1}
