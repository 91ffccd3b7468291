"""The tests' settings, with the engine as ENGINE of every PostgreSQL alias."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import ADDRESS

idle_for = os.environ.get("ENGINE_IDLE_FOR", "auto")
CONN_GUARD = {"ENGINE_IDLE_FOR": idle_for if idle_for == "auto" else float(idle_for)}
ROOT_URLCONF = "tests.postgres.engine_site.urls"
GUARDED = {**ADDRESS, "ENGINE": "conn_guard.engine.postgresql", "CONN_MAX_AGE": 60}
DATABASES = {
    "default": {**GUARDED, "TEST": {"NAME": f"test_engine_site_{os.getpid()}"}},
    "other": {**GUARDED, "TEST": {"NAME": f"test_engine_site_other_{os.getpid()}"}},
}

STATIC_URL = "static/"
