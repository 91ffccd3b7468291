"""The terminal's view of a play: the chart of used slots, and the table of figures."""

import math
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from demo.acts import Act, Play
from demo.meter import Reading

HEIGHT = 8
EIGHTHS = " ▁▂▃▄▅▆▇█"
COLOURS = {"1": "red", "2": "yellow", "3a": "green", "3b": "cyan"}


def highest(readings: Sequence[Reading], columns: int) -> list[int]:
    """Return the highest reading of each of *columns* equal spans of time.

    A span without a reading repeats the last one.
    """
    spans: list[int | None] = [None] * columns
    begin = readings[0].at if readings else 0.0
    length = max(readings[-1].at - begin, 1e-9) if readings else 1.0
    for reading in readings:
        span = min(int((reading.at - begin) / length * columns), columns - 1)
        spans[span] = max(spans[span] or 0, reading.used)
    values, last = [], 0
    for value in spans:
        last = last if value is None else value
        values.append(last)
    return values


def bars(values: Sequence[int], top: int) -> Iterator[str]:
    """Yield the lines of a bar chart of *values*, from the top down.

    A value above zero shows at least an eighth of a line.
    """
    heights = [math.ceil(min(value, top) / top * HEIGHT * 8) for value in values]
    for line in reversed(range(HEIGHT)):
        yield "".join(EIGHTHS[max(0, min(8, height - line * 8))] for height in heights)


class Screen:
    """A renderable that draws *play* as it stands when it is rendered."""

    def __init__(self, play: Play) -> None:
        self.play = play

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.play.watch()
        yield Group(chart(self.play, options.max_width), figures(self.play))


def chart(play: Play, width: int) -> Text:
    """Return one panel for each act, side by side; the rule at the top is the last slot."""
    slots = play.stage.slots
    margin = len(str(slots)) + 2
    panel = (min(width, 120) - margin) // len(play.acts) - 1
    drawn = [
        list(bars(highest(act.readings, panel) if act.readings else [], slots)) for act in play.acts
    ]
    text = Text(no_wrap=True)
    text.append(f"{'slots':>{margin + 3}} in use\n", "dim")
    text.append(f"{slots:>{margin - 2}} ┬", "dim").append(
        "─" * ((panel + 1) * len(play.acts) - 1) + "\n", "dim"
    )
    for line in range(HEIGHT):
        text.append(f"{0:>{margin - 2}} ┴" if line == HEIGHT - 1 else f"{'│':>{margin}}", "dim")
        for act, lines in zip(play.acts, drawn, strict=True):
            text.append(lines[line].ljust(panel) + " ", COLOURS[act.number])
        text.append("\n")
    text.append(" " * margin)
    for act in play.acts:
        took = f"{act.seconds:.1f} s" if act.readings else ""
        label = f"act {act.number}"
        text.append(label, f"bold {COLOURS[act.number]}").append(
            f"{took:>{panel - len(label)}} ", "dim"
        )
    text.append("\n")
    return text


def figures(play: Play) -> Table:
    """Return the table of the acts' figures, counted by the client and by PostgreSQL."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("act")
    table.add_column("")
    for heading in ("requests", "errors", f"peak of {play.stage.slots}", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for act in play.acts:
        table.add_row(
            act.number,
            act.title,
            *row(act),
            style=COLOURS[act.number] if act is play.now_playing else None,
        )
    return table


def row(act: Act) -> list[str]:
    """Return an act's figures as text; a hyphen stands for a figure that isn't known yet."""
    if not act.readings:
        return ["-"] * 4
    of = f"/{act.expected}" if act.expected and act.left is None else ""
    return [
        f"{act.requests}{of}",
        str(act.errors),
        str(act.peak),
        "-" if act.left is None else str(act.left),
    ]
