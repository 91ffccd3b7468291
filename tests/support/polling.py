"""This room holds the one way to wait: ask until it is so, up to a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(predicate: Callable[[], T], timeout: float = 10.0) -> T:
    """Return the first true answer of *predicate*, or fail with its last one after *timeout*
    seconds.
    """
    deadline = time.monotonic() + timeout
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(
                f"{getattr(predicate, '__qualname__', predicate)} was {answer!r} for {timeout} s"
            )
        time.sleep(0.02)
    return answer
