"""Stacks as reports show them: without the frames of libraries between a project's own lines."""

from __future__ import annotations

import itertools
import sys
import threading
import traceback
from collections.abc import Iterable
from types import FrameType

_INTERNAL = frozenset(
    [
        "asgiref",
        "asyncio",
        "concurrent",
        "conn_guard",
        "contextlib",
        "django",
        "pytest_django",
        "threading",
    ]
)
_TEST_RUNNERS = frozenset(["_pytest", "pluggy"])


def own_stack(frames: Iterable[FrameType]) -> traceback.StackSummary:
    """Return the project's own part of *frames*, the outermost first.

    *frames* begins with the innermost frame. Frames outside a test are left out. Where no frame is
    the project's own, all are kept, so a stack always has a line. The text of the lines is read
    only when the stack is formatted.
    """
    inside = list(itertools.takewhile(lambda frame: _package(frame) not in _TEST_RUNNERS, frames))
    own = [frame for frame in inside if is_own(frame)] or inside
    stack = traceback.StackSummary.extract(
        ((frame, frame.f_lineno) for frame in own), lookup_lines=False
    )
    stack.reverse()
    return stack


def callers() -> list[FrameType]:
    """Return the frames of this thread, from the caller of the calling function outwards.

    The calling function's own frame is left out: a frame whose variable holds itself is a cycle,
    and would keep every variable of these frames until the garbage collector runs.
    """
    return [frame for frame, _ in traceback.walk_stack(sys._getframe(2))]


def where_is(ident: int) -> str:
    """Return the lines that show where the thread *ident* is now, or that it has ended.

    **Source:** ``sys._current_frames()``.
    """
    frame = sys._current_frames().get(ident)
    try:
        if frame is None or all(each.ident != ident for each in threading.enumerate()):
            return "That thread has ended.\n"
        stack = own_stack(each for each, _ in traceback.walk_stack(frame))
        return f"That thread is now at:\n{''.join(stack.format())}"
    finally:
        # It is this function's own frame if *ident* is this thread.
        del frame


def is_own(frame: FrameType) -> bool:
    """Return whether *frame* belongs to the project and not to a library that runs its threads."""
    return _package(frame) not in _INTERNAL


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
