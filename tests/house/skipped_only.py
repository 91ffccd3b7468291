"""A file with skipped tests only; test_dev.py runs it, and pytest doesn't collect it."""

import pytest


def test_skipped():
    pytest.skip("on purpose")
