"""A snapshot as text for a terminal or a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from conn_guard.sessions.groups import DEFAULT_BY, Field, Group, Snapshot, grouped
from conn_guard.sessions.meaning import Level, Meaning
from conn_guard.sessions.report import Slots
from conn_guard.text import duration, one_line, printable

NARROWEST = 80
"""Columns that a report needs."""
BAR = 30
"""Columns of the bar of the slots."""
GROUPS_SHOWN = 30
"""Groups in the table; the rest is one line."""
NARROWEST_CELL = 4
WEIGHTS = {"APPLICATION": 1.5, "LAST": 1.8}
"""Columns that keep more of their width than others; people recognise a leak by them."""

_MARKS = {Level.ALARM: "!!", Level.WARNING: "! ", Level.NOTE: "- "}


def render_report(
    snapshot: Snapshot,
    meanings: Sequence[Meaning],
    *,
    by: Sequence[Field] = DEFAULT_BY,
    width: int | None = None,
    every_group: bool = False,
) -> list[str]:
    """Return *snapshot* as lines: the slots, the groups, what they mean, unsafe settings.

    *width* is the number of columns of the terminal, at least 80; None cuts and wraps no line.
    """
    width = None if width is None else max(width, NARROWEST)
    groups = grouped(snapshot.rows, by)
    shown = groups if every_group else groups[:GROUPS_SHOWN]
    lines = render_slots(snapshot, width=width)
    if shown:
        lines += ["", *render_groups(shown, by, width=width)]
    if rest := groups[len(shown) :]:
        sessions = sum(len(each) for each in rest)
        lines.append(f"and {sessions} sessions in {len(rest)} smaller groups: -v 2 shows them")
    if meanings:
        lines += ["", "What it means"]
        for each in meanings:
            lines += _paragraph(_MARKS[each.level], each.sentence, each.command, width)
    if snapshot.findings:
        lines += ["", "Unsafe settings"]
        for finding in snapshot.findings:
            words = one_line(f"{finding.id}: {finding.message}")
            lines += _paragraph("! ", words, "", width)
            lines += [f"       {line}" for line in _wrapped(one_line(finding.hint), width, 7)]
    return lines


def render_slots(snapshot: Snapshot, *, width: int | None = None) -> list[str]:
    """Return the lines that name the server and show its slots as a bar."""
    address = printable(f"{snapshot.alias} {snapshot.address}".strip())
    when = f"  {snapshot.observed_at:%Y-%m-%d %H:%M:%S} UTC" if snapshot.observed_at else ""
    version = f"PostgreSQL {snapshot.server_version}{when}"
    if width is not None:
        address = cut(address, width - len(version) - 2)
    slots = snapshot.slots or Slots(0, 0, exact=True)
    bound = "" if slots.exact else "≤"
    limit = {
        "server": "slots",
        "role": "slots of the role's CONNECTION LIMIT",
        "database": "slots of the database's CONNECTION LIMIT",
    }[snapshot.slots_limit]
    hidden = f", {snapshot.hidden} hidden" if snapshot.hidden else ""
    return [
        f"{address}  {version}",
        f"{slots_bar(slots)} {bound}{slots.used}/{slots.total} {limit}"
        f" ({bound}{slots.percent:.0f}%)  sessions {len(snapshot.rows)}{hidden}",
    ]


def slots_bar(slots: Slots, *, width: int = BAR) -> str:
    """Return a bar of *width* columns for the slots in use."""
    filled = min(width, round(width * slots.percent / 100))
    filled = max(filled, 1) if slots.used else filled
    return f"[{'#' * filled}{'.' * (width - filled)}]"


def render_groups(
    groups: Sequence[Group], by: Sequence[Field] = DEFAULT_BY, *, width: int | None = None
) -> list[str]:
    """Return *groups* as the lines of a table.

    Where it is wider than *width*, names are cut in the middle, and the reasons to spare sessions
    stand in a line of their own.
    """
    # The state stands before the names, where the eye looks for it.
    fields = sorted(by, key=lambda each: each is not Field.STATE)
    last = [] if Field.LAST in by else ["LAST"]
    header = ["SESSIONS", *(each.name for each in fields), *last, "LONGEST", "REAPER"]
    rows = [header, *(_cells(each, fields) for each in groups)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    is_narrow = width is not None and sum(widths) + 2 * (len(widths) - 1) > width
    if width is not None and is_narrow:
        for row, group in zip(rows[1:], groups, strict=True):
            row[-1] = f"ends {group.would_end}" if group.would_end else "-"
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        narrow(widths, header, width - 2 * (len(widths) - 1))
    right = (0, len(header) - 2)
    lines = []
    for row, shown in zip(rows, [None, *groups], strict=True):
        cells = (
            each.rjust(size) if at in right else cut(each, size).ljust(size)
            for at, (each, size) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
        if is_narrow and shown and shown.spared:
            lines.append(f"{' ' * 10}spares {_spared(shown)}")
    return lines


def fate(group: Group) -> str:
    """Return how many sessions of *group* idle_reaper would end, and why it spares others."""
    parts = [f"ends {group.would_end}"] if group.would_end else []
    parts += [f"spares {_spared(group)}"] if group.spared else []
    return ", ".join(parts) or "-"


def cut(text: str, width: int) -> str:
    """Return *text* in at most *width* columns, cut in the middle."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[: width - 1 - left]}…{text[len(text) - left :]}"


def _cells(group: Group, fields: Sequence[Field]) -> list[str]:
    names = [printable(group.key[each] or "-") for each in fields]
    shape = [] if Field.LAST in fields else [group.last or "-"]
    longest = "-" if group.longest is None else duration(max(0, group.longest.total_seconds()))
    return [str(len(group)), *names, *shape, longest, fate(group)]


def _spared(group: Group) -> str:
    reasons = ", ".join(f"{each.replace('_', ' ')} {n}" for each, n in group.spared.items())
    return f"{sum(group.spared.values())} ({reasons})"


def narrow(widths: list[int], header: Sequence[str], room: int) -> None:
    """Make the columns of names narrower until *widths* have *room*."""
    names = range(1, len(widths) - 2)
    while sum(widths) > room:
        at = max(names, key=lambda each: widths[each] / WEIGHTS.get(header[each], 1))
        if widths[at] <= NARROWEST_CELL:
            return
        widths[at] -= 1


def _paragraph(mark: str, words: str, command: str, width: int | None) -> list[str]:
    """Return *words* as wrapped lines behind *mark*, and *command* whole on a line of its own."""
    lines = _wrapped(words, width, 3)
    indented = [f"{mark if not at else '  '} {line}" for at, line in enumerate(lines)]
    return [*indented, *([f"       {command}"] if command else [])]


def _wrapped(words: str, width: int | None, indent: int) -> list[str]:
    if width is None:
        return [words]
    return textwrap.wrap(words, width - indent, break_on_hyphens=False)
