"""The server's count of unfinished work, and its collector, for the harness; without Django."""

import gc
import json
import os
import threading
import time
from contextlib import contextmanager

if os.environ.get("LEAKS_GC") == "off":
    gc.disable()

_lock = threading.Lock()
_under_way = 0


def answer(path):
    """Return the body for a path under ``/control/``: this process, its work under way and the CPU
    time that it took.
    """
    if path == "/control/collect":
        for _ in range(3):
            gc.collect()
    return json.dumps(
        {"pid": os.getpid(), "under_way": _under_way, "cpu_seconds": time.process_time()}
    ).encode()


@contextmanager
def work():
    """Count the block as work under way, so that nobody counts sessions before it has ended."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def later(function):
    """Return *function* for a thread or a timer to run, counted from now until it has run."""
    _count(1)

    def run():
        try:
            return function()
        finally:
            _count(-1)

    return run


def _count(by):
    global _under_way
    with _lock:
        _under_way += by
