"""The settings of the tests, read from the environment by django-environ."""

import environ

env = environ.Env()

SECRET_KEY = "only for tests"
USE_TZ = True
ROOT_URLCONF = "tests.urls"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "conn_guard",
]
MIDDLEWARE = [
    "conn_guard.middleware.ConnectionGuardMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Tables are made from the models: three databases are ready in a moment.
MIGRATION_MODULES = {"contenttypes": None, "auth": None, "sessions": None}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

ADDRESS = env.db_url("DATABASE_URL", default="postgres://postgres@127.0.0.1:5432/postgres")
DATABASES = {
    "default": {**ADDRESS, "TEST": {"NAME": "test_conn_guard"}},
    # A second database of the same server, and an engine that is no PostgreSQL.
    "other": {**ADDRESS, "TEST": {"NAME": "test_conn_guard_other"}},
    "lite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
