"""The demo's report: one HTML page that loads nothing."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import django
from django.template.loader import render_to_string

from demo.acts import Act, Play
from demo.chart import highest, row

# The drawing's measures; one unit is one pixel where the page has its full width.
WIDTH, FLOOR, LEFT, TOP, GAP = 960, 276, 34, 26, 14
STEPS = 160


@dataclass(frozen=True)
class Panel:
    """One act's part of the drawing."""

    act: Act
    cells: list[str]
    left: float
    right: float
    line: str
    """A path along the highest readings."""


def render(play: Play, faults: Sequence[str]) -> str:
    """Return the page of a play that has ended."""
    slots = play.stage.slots
    leak, _, *guarded = play.acts
    width = (WIDTH - LEFT - GAP * (len(play.acts) - 1)) / len(play.acts)
    context = {
        "faults": faults,
        "slots": slots,
        "leak": leak,
        "guarded_requests": sum(act.requests for act in guarded),
        "guarded_left": sum(act.left or 0 for act in guarded),
        "panels": [
            _panel(act, LEFT + (width + GAP) * number, width, slots)
            for number, act in enumerate(play.acts)
        ],
        "marks": [(mark, _height(mark, slots)) for mark in (0, *range(10, slots - 4, 10))],
        "top": TOP,
        "floor": FLOOR,
        "reaper_said": play.reaper_said,
        "postgres": play.stage.postgres,
        "django": django.get_version(),
        "uvicorn": version("uvicorn"),
        "python": platform.python_version(),
    }
    return render_to_string("demo/report.html", context)


def _panel(act: Act, left: float, width: float, slots: int) -> Panel:
    steps = highest(act.readings, STEPS) if act.readings else []
    line = "".join(
        f"{'L' if number else 'M'}{left + number * width / STEPS:.1f}"
        f" {_height(used, slots)}h{width / STEPS:.1f}"
        for number, used in enumerate(steps)
    )
    return Panel(act, row(act), round(left, 1), round(left + width, 1), line)


def _height(used: int, slots: int) -> float:
    return round(FLOOR - used / slots * (FLOOR - TOP), 1)
