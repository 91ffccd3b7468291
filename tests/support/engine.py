"""Values that the tests of the engine share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import django
import pytest
from django.db import InterfaceError, OperationalError
from django.db.backends.postgresql.psycopg_any import is_psycopg3

BROKEN = (OperationalError, InterfaceError)
"""The errors of a statement whose session has ended."""


def pooled(make_engine: Callable[..., Any], **pool: object) -> Any:
    """Return an alias with Django's pool of at most 3 connections, or skip the test."""
    if django.VERSION < (5, 1) or not is_psycopg3:
        pytest.skip("Django's pool came with 5.1, for psycopg 3")
    return make_engine(options={"pool": {"min_size": 1, "max_size": 3, "timeout": 5, **pool}})
