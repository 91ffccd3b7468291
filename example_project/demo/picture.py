"""The chart of a play as one SVG file, for pages that can't run the demo."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from demo.acts import Act, Play
from demo.chart import highest

WIDTH, HEIGHT = 900, 400
LEFT, TOP, FLOOR, GAP = 58, 96, 310, 16
STEPS = 120
COLOURS = {
    "1": ("#c8102e", "#ff6b7a"),
    "2": ("#9a5b00", "#f0b040"),
    "3a": ("#1a7f4b", "#4cc38a"),
    "3b": ("#00728f", "#4db8d6"),
}
"""The colour of each act on a light and on a dark page."""
TITLES = {
    "1": "Without conn_guard",
    "2": "Then idle_reaper",
    "3a": "The app alone",
    "3b": "App and middleware",
}


def write(play: Play, path: Path) -> None:
    """Write the picture of a play that has ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_lines(play)) + "\n", encoding="utf-8")


def _lines(play: Play) -> Iterator[str]:
    slots = play.stage.slots
    light = "".join(f".a{number}{{color:{colours[0]}}}" for number, colours in COLOURS.items())
    dark = "".join(f".a{number}{{color:{colours[1]}}}" for number, colours in COLOURS.items())
    what = f"Slots in use out of {slots}. " + " ".join(
        f"{TITLES[act.number]}: {_figures(act)}, {act.left} left." for act in play.acts
    )
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img" aria-labelledby="title">'
    )
    yield f'<title id="title">{escape(what)}</title>'
    yield (
        "<style>text{font-family:system-ui,'DejaVu Sans',sans-serif;fill:#1f2328}"
        ".ground{fill:#fff;stroke:#d0d7de}.soft{fill:#59636e}.rule{stroke:#d8dee4}"
        f".limit{{stroke:#59636e;stroke-dasharray:5 4}}.act{{fill:currentColor}}{light}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#0d1117;stroke:#30363d}"
        f".soft{{fill:#9198a1}}.rule{{stroke:#2b3138}}.limit{{stroke:#9198a1}}{dark}"
        ".act{fill:currentColor}}</style>"
    )
    yield (
        f'<rect class="ground" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>'
    )
    yield (
        f'<text x="24" y="36" font-size="18" font-weight="600">The application has {slots} slots'
        " of PostgreSQL</text>"
    )
    yield (
        '<text class="soft" x="24" y="58" font-size="13">Slots in use, counted 20 times a second'
        " while clients download. The dashed line is the last slot.</text>"
    )
    for mark in range(0, slots, 10):
        if mark <= slots - 4:
            yield from _mark(mark, slots, "rule")
    yield from _mark(slots, slots, "limit")
    width = (WIDTH - LEFT - 24 - GAP * (len(play.acts) - 1)) / len(play.acts)
    for number, act in enumerate(play.acts):
        yield from _panel(act, LEFT + (width + GAP) * number, width, slots)
    yield "</svg>"


def _panel(act: Act, left: float, width: float, slots: int) -> Iterator[str]:
    values = highest(act.readings, STEPS) if act.readings else []
    step = width / STEPS
    line = "".join(
        f"{'L' if number else 'M'}{left + number * step:.1f} {_height(used, slots)}h{step:.1f}"
        for number, used in enumerate(values)
    )
    yield f'<g class="a{act.number}">'
    if line:
        yield (
            f'<path d="{line}V{FLOOR}H{left:.1f}Z" fill="currentColor" fill-opacity=".18"/>'
            f'<path d="{line}" fill="none" stroke="currentColor" stroke-width="2"/>'
        )
    title = escape(TITLES[act.number])
    x = f'x="{left:.1f}"'
    yield f'<text class="act" {x} y="336" font-size="14" font-weight="600">{title}</text>'
    yield f'<text {x} y="357" font-size="13">{_figures(act)}</text>'
    yield f'<text {x} y="377" font-size="13">{act.left} sessions left</text></g>'


def _figures(act: Act) -> str:
    errors = "1 error" if act.errors == 1 else f"{act.errors or 'no'} errors"
    return f"{act.requests} requests, {errors}"


def _mark(value: int, slots: int, kind: str) -> Iterator[str]:
    height = _height(value, slots)
    yield f'<path class="{kind}" d="M{LEFT} {height}H{WIDTH - 24}"/>'
    yield (
        f'<text class="soft" x="{LEFT - 10}" y="{height + 4}" font-size="12" text-anchor="end">'
        f"{value}</text>"
    )


def _height(used: int, slots: int) -> float:
    return round(FLOOR - used / slots * (FLOOR - TOP), 1)
