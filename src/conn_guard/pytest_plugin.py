"""The pytest plugin: it fails a test that leaves a connection open, or whose URL leaks sessions.

pytest imports this module in every project where conn_guard is installed. So it imports only pytest
until its option or fixture is used, and defines nothing if pytest is too old for its hooks.
"""

from __future__ import annotations

import pytest


def _is_supported() -> bool:
    try:
        pytest.hookimpl(wrapper=True)
    except TypeError:
        return False
    return hasattr(pytest, "StashKey")


if _is_supported():
    from conn_guard.pytest_hooks import (
        LeakedConnectionWarning,
        leak_probe,
        no_leaked_connections,
        pytest_addoption,
        pytest_fixture_setup,
        pytest_runtest_setup,
        pytest_runtest_teardown,
    )

    __all__ = [
        "LeakedConnectionWarning",
        "leak_probe",
        "no_leaked_connections",
        "pytest_addoption",
        "pytest_fixture_setup",
        "pytest_runtest_setup",
        "pytest_runtest_teardown",
    ]
