"""Waiting, by asking again until the answer is true or a deadline has passed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(predicate: Callable[[], T], timeout: float = 10.0) -> T:
    """Return the first true answer of *predicate*; after *timeout* seconds, fail with the last."""
    deadline = time.monotonic() + timeout
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(
                f"{getattr(predicate, '__qualname__', predicate)} was {answer!r} for {timeout} s"
            )
        time.sleep(0.02)
    return answer
