"""Settings of the example, each of which the environment can change."""

from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

DEBUG = env.bool("DEBUG", default=True)
SECRET_KEY = (
    env.str("SECRET_KEY", default="for development only") if DEBUG else env.str("SECRET_KEY")
)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])

# How much of conn_guard runs: "off", "app" (INSTALLED_APPS and nothing else), "middleware" (both)
# or "engine" (all three).
GUARD = env.str("EXAMPLE_GUARD", default="middleware")
CONN_GUARD = env.json("CONN_GUARD", default={})
# Whether /metrics counts connections for Prometheus; needs prometheus-client.
METRICS = env.bool("EXAMPLE_METRICS", default=False) and GUARD != "off"

INSTALLED_APPS = [
    *(["conn_guard"] if GUARD != "off" else []),
    *(["conn_guard.contrib.admin"] if GUARD in ("middleware", "engine") else []),
    *(["conn_guard.contrib.prometheus"] if METRICS else []),
    "annotations",
    "demo",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    *(
        ["conn_guard.middleware.ConnectionGuardMiddleware"]
        if GUARD in ("middleware", "engine")
        else []
    ),
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "annotations.tokens.TokenMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

# The second alias is the operator's way in when the application has taken every slot: see
# `idle_reaper --database operator`.
DATABASES = {
    "default": env.db_url("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'example.sqlite3'}")
}
if "OPERATOR_DATABASE_URL" in env:
    DATABASES["operator"] = env.db_url("OPERATOR_DATABASE_URL")
for database in DATABASES.values():
    if "postgres" in database["ENGINE"]:
        name = env.str("APPLICATION_NAME", default="example:server")
        database.setdefault("OPTIONS", {}).setdefault("application_name", name)
        if GUARD == "engine":
            database["ENGINE"] = "conn_guard.engine.postgresql"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# "nginx" answers a download with X-Accel-Redirect, as CVAT does in production; "simple" sends the
# file itself.
SENDFILE_BACKEND = env.str("SENDFILE_BACKEND", default="simple" if DEBUG else "nginx")
MEDIA_ROOT = env.path("MEDIA_ROOT", default=str(BASE_DIR / "media"))()
STATIC_URL = "static/"

# Without DEBUG, Django alone would print no error anywhere.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {
        "django": {"handlers": ["console"], "level": "INFO"},
        "conn_guard": {
            "handlers": ["console"],
            "level": env.str("CONN_GUARD_LOG_LEVEL", default="WARNING"),
        },
    },
}

ROOT_URLCONF = "example.urls"
ASGI_APPLICATION = "example.asgi.application"
WSGI_APPLICATION = "example.wsgi.application"
LOGIN_REDIRECT_URL = "projects"
LOGOUT_REDIRECT_URL = "login"
USE_TZ = True

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
