"""The panels of the Grafana dashboard as one SVG file, with the data that Prometheus has."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from demo.incident import Event
from demo.prometheus import RULES, Prometheus, shortened

DASHBOARD = RULES.with_name("grafana.json")
COLUMN, ROW, GAP, TOP = 46, 26, 8, 74
"""A column and a row of Grafana's grid of 24 columns, the gap between panels, and the heading."""
COLOURS = ("#3a7be0", "#d9480f", "#2b8a3e", "#9c36b5", "#0b8599", "#c92a2a", "#866300", "#5f3dc4")
STEP_SECONDS = 1
# Prometheus scrapes every second here.
VARIABLES = {"$alias": ".*", "$__rate_interval": "5s"}


def expressions(panel: dict) -> Iterator[tuple[str, str]]:
    """Yield legend and expression of each query, with a second for each minute."""
    for target in panel["targets"]:
        expression = shortened(target["expr"]).strip()
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        yield target["legendFormat"], expression


def write(prometheus: Prometheus, events: Sequence[Event], path: Path) -> None:
    """Draw every panel from shortly before the first event to shortly after the last."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    start, end = events[0].at - 4, events[-1].at + 2
    path.write_text("\n".join(_lines(prometheus, events, panels, start, end)) + "\n", "utf-8")


def _lines(
    prometheus: Prometheus, events: Sequence[Event], panels: list[dict], start: float, end: float
) -> Iterator[str]:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    floor = TOP + rows * ROW
    width, height = 24 * COLUMN + 2 * GAP, floor + 30 + 20 * math.ceil(len(events) / 2)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img" aria-labelledby="title">'
    )
    told = " ".join(f"{event.at - events[0].at:.0f} s: {event.text}." for event in events)
    yield f'<title id="title">{escape(told)}</title>'
    yield (
        "<style>text{font-family:system-ui,'DejaVu Sans',sans-serif;font-size:11px;fill:#1f2328}"
        ".ground{fill:#f4f5f7}.panel{fill:#fff;stroke:#d0d7de}.soft{fill:#59636e}.rule{stroke:#e4e8ec}"
        ".event{stroke:#59636e;stroke-dasharray:2 3}.head{font-size:13px;font-weight:600}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#0d1117}"
        ".panel{fill:#161b22;stroke:#30363d}.soft{fill:#9198a1}.rule{stroke:#262c34}"
        ".event{stroke:#9198a1}}</style>"
    )
    yield f'<rect class="ground" width="{width}" height="{height}"/>'
    yield (
        f'<text x="{2 * GAP}" y="30" style="font-size:18px;font-weight:600">conn_guard: connections'
        " and sessions</text>"
    )
    yield (
        f'<text class="soft" x="{2 * GAP}" y="52" style="font-size:12px">The panels of grafana.json'
        " with the data of one run, in which a second stands for a minute. The numbers are listed"
        " below.</text>"
    )
    marks = [(event.at - start) / (end - start) for event in events]
    for panel in panels:
        grid = panel["gridPos"]
        left, top = GAP + grid["x"] * COLUMN + GAP / 2, TOP + grid["y"] * ROW
        wide, high = grid["w"] * COLUMN - GAP, grid["h"] * ROW - GAP
        yield f'<g transform="translate({left:.0f} {top:.0f})">'
        yield f'<rect class="panel" x=".5" y=".5" width="{wide - 1}" height="{high - 1}" rx="4"/>'
        yield f'<text class="head" x="10" y="20">{escape(panel["title"])}</text>'
        if panel["type"] == "stat":
            yield from _stat(prometheus, panel, end, high)
        else:
            found = _series(prometheus, panel, start, end)
            yield from _graph(panel, found, marks, wide, high)
        yield "</g>"
    for number, event in enumerate(events):
        x = 2 * GAP + (number % 2) * width / 2
        y = floor + 24 + 20 * (number // 2)
        text = f"{number + 1}   {event.at - events[0].at:.1f} s   {event.text}"
        yield f'<text x="{x:.0f}" y="{y}" style="font-size:12px">{escape(text)}</text>'
    yield "</svg>"


def _series(
    prometheus: Prometheus, panel: dict, start: float, end: float
) -> list[tuple[str, bool, list[float | None]]]:
    """Return of each series the name, whether the line is dashed, and a value for each step."""
    dashed = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]}
    count = int((end - start) / STEP_SECONDS) + 1
    found = []
    for target, (legend, expression) in zip(panel["targets"], expressions(panel), strict=True):
        for each in prometheus.query_range(expression, start, end, STEP_SECONDS):
            values: list[float | None] = [None] * count
            for at, value in each["values"]:
                if not math.isnan(float(value)):
                    values[round((at - start) / STEP_SECONDS)] = float(value)
            found.append((_named(legend, each["metric"]), target["refId"] in dashed, values))
    return found


def _named(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend)


def _stat(prometheus: Prometheus, panel: dict, at: float, high: int) -> Iterator[str]:
    ((_, expression),) = expressions(panel)
    defaults = panel["fieldConfig"]["defaults"]
    for each in prometheus.ask("query", query=expression, time=at)["result"][:1]:
        value = float(each["value"][1])
        colour = "green"
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is None or value >= step["value"]:
                colour = step["color"]
        shown = {"percentunit": f"{value:.0%}", "s": f"{value:.0f} s"}.get(
            defaults["unit"], f"{value:g}"
        )
        paint = {"green": "#2f9e44", "orange": "#e8590c", "red": "#e03131"}[colour]
        yield f'<text x="10" y="{high - 22}" style="font-size:34px;fill:{paint}">{shown}</text>'


def _graph(
    panel: dict,
    found: list[tuple[str, bool, list[float | None]]],
    marks: list[float],
    wide: int,
    high: int,
) -> Iterator[str]:
    custom = panel["fieldConfig"]["defaults"]["custom"]
    is_stacked = custom["stacking"]["mode"] == "normal"
    is_stepped = custom["lineInterpolation"] == "stepAfter"
    left, right, top, floor = 44, wide - 14, 44, high - 54
    lows: list[list[float]] = []
    if is_stacked:
        below = [0.0] * max((len(values) for *_, values in found), default=0)
        for _, _, values in found:
            lows.append(below)
            below = [low + (value or 0.0) for low, value in zip(below, values, strict=True)]
        highest = max(below, default=0.0)
    else:
        highest = max((value for *_, values in found for value in values if value), default=0.0)
    limit = _nice(highest)
    for part in (0.0, 0.5, 1.0):
        y = floor - part * (floor - top)
        yield f'<path class="rule" d="M{left} {y:.1f}H{right}"/>'
        yield (
            f'<text class="soft" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{part * limit:g}</text>"
        )
    for number, mark in enumerate(marks):
        x = left + mark * (right - left)
        # Two events may be less than a digit's width apart.
        raised = 10 if number and x - left - marks[number - 1] * (right - left) < 12 else 0
        yield f'<path class="event" d="M{x:.1f} {top}V{floor}"/>'
        yield (
            f'<text class="soft" x="{x:.1f}" y="{top - 4 - raised}" text-anchor="middle"'
            f' style="font-size:9px">{number + 1}</text>'
        )
    legend_left, legend_top = left, high - 34
    for index, (name, is_dashed, values) in enumerate(found):
        colour = COLOURS[index % len(COLOURS)]
        step = (right - left) / max(1, len(values) - 1)

        def height(value: float) -> float:
            return round(floor - value / limit * (floor - top), 1)

        low = lows[index] if is_stacked else [0.0] * len(values)
        line, area = "", ""
        for number, value in enumerate(values):
            if value is None:
                continue
            x, y = round(left + number * step, 1), height(low[number] + value)
            joined = number > 0 and values[number - 1] is not None
            line += (f"H{x}V{y}" if is_stepped else f"L{x} {y}") if joined else f"M{x} {y}"
            if is_stacked:
                ends_at = round(min(right, x + step), 1)
                area += f"M{x} {y}H{ends_at}V{height(low[number])}H{x}Z"
        if area:
            yield f'<path d="{area}" fill="{colour}" fill-opacity=".25"/>'
        dash = ' stroke-dasharray="8 6"' if is_dashed else ""
        yield f'<path d="{line}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
        needed = 30 + round(6.2 * len(name))
        if legend_left + needed > wide and legend_left > left:
            legend_left, legend_top = left, legend_top + 16
        yield (
            f'<rect x="{legend_left}" y="{legend_top}" width="10" height="3" fill="{colour}"/>'
            f'<text x="{legend_left + 14}" y="{legend_top + 5}">{escape(name)}</text>'
        )
        legend_left += needed


def _nice(highest: float) -> float:
    """Return the end of an axis: 1, 2, 4, 5 or 8 times a power of ten."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(power * each for each in (1, 2, 4, 5, 8, 10) if power * each >= highest)
