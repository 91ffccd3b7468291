"""Not collected by itself: test_dev.py runs it to see that a run without an executed test fails."""

import pytest


def test_skipped():
    pytest.skip("on purpose")
