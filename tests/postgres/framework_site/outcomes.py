"""Performs one job of the task site and writes down how it ended."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections

from tests.postgres.task_site import jobs


def reset() -> None:
    """Close whatever earlier jobs left open, so that the next one begins on a fresh thread."""
    _close()
    asyncio.run(sync_to_async(_close)())
    gc.collect()


def _close() -> None:
    for wrapper in [*jobs.KEPT, connections["default"]]:
        wrapper.in_atomic_block = False
        wrapper.close()
    jobs.KEPT.clear()
    del connections["default"]


JOBS: dict[str, Any] = {
    **{job.__name__: job for job in (*jobs.JOBS, jobs.coroutine)},
    "reset": reset,
}


def perform(name: str, path: str) -> None:
    """Perform the job *name* and write what it returned or raised to *path*, whole."""
    outcome: dict[str, object] = {}
    try:
        outcome["returned"] = JOBS[name]()
    except BaseException as error:
        outcome["raised"] = repr(error)
        raise
    finally:
        write(path, outcome)


async def aperform(name: str, path: str) -> None:
    """Do the same for a job that is a coroutine function."""
    outcome: dict[str, object] = {}
    try:
        outcome["returned"] = await JOBS[name]()
    except BaseException as error:
        outcome["raised"] = repr(error)
        raise
    finally:
        write(path, outcome)


def write(path: str, outcome: dict[str, object]) -> None:
    unfinished = Path(f"{path}.tmp")
    unfinished.write_text(json.dumps(outcome))
    unfinished.rename(path)
