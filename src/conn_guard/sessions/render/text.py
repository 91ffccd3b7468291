"""A report as text for a terminal."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from conn_guard.sessions.policy import Verdict
from conn_guard.sessions.report import Outcome, Report, Slots, Status
from conn_guard.text import duration, one_line, printable


def render_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return *outcomes* as a table: a line of headings and one line a session; nothing where there
    is none.
    """
    if not outcomes:
        return []
    rows = [
        ("ACTION", "PID", "USER", "DATABASE", "APPLICATION", "CLIENT", "STATE", "FOR", "REASON")
    ]
    for outcome in outcomes:
        session = outcome.session
        rows.append(
            (
                outcome.action.value,
                str(session.pid),
                printable(session.user or "-"),
                printable(session.database or "-"),
                printable(session.application_name or "-"),
                session.client or "local",
                session.state.value if session.state else "-",
                duration(session.in_state_for.total_seconds()) if session.state_change else "-",
                outcome.reason or "-",
            )
        )
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def render_line(report: Report) -> str:
    """Return what happened to one alias, in one line."""
    parts = [printable(f"{report.alias} {report.address}".strip())]
    if report.slots:
        parts.append(f"slots {_slots(report.slots)}")
    if report.status is Status.ALREADY_RUNNING:
        return "  ".join([*parts, "already running", f"{report.seconds:.2f} s"])
    if report.status is Status.BELOW_THRESHOLD:
        parts.append("below --when-above")
    parts.append(f"idle {report.candidates}")
    if report.would_signal or report.dry_run:
        parts.append(f"would signal {report.would_signal}")
    if not report.dry_run:
        parts.append(f"signalled {report.signalled}")
    spared = {
        reason: count for reason, count in report.spared.items() if reason != Verdict.SELF.value
    }
    reasons = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in spared.items())
    parts.append(f"spared {sum(spared.values())}" + (f" ({reasons})" if reasons else ""))
    if report.failed:
        parts.append(f"failed {report.failed}")
    if not report.dry_run:
        parts.append(f"gone {'?' if report.gone is None else report.gone}")
        parts.append(f"survivors {'?' if report.survivors is None else report.survivors}")
    return "  ".join([*parts, f"{report.seconds:.2f} s"])


def _slots(slots: Slots) -> str:
    # Sessions beyond a limit are no error: superusers and roles with a reserve get in where nobody
    # else does.
    bound, up_to = ("", "") if slots.exact else ("≤", "up to ")
    beyond = max(0, slots.used - max(0, slots.total))
    words = f" and {up_to}{beyond} beyond the limit" if beyond else ""
    return (
        f"{bound}{slots.used - beyond}/{slots.total} ({bound}{min(100, slots.percent):.0f}%{words})"
    )


def render_failure(report: Report) -> str:
    """Return in one line why a report's exit code isn't 0."""
    if report.interrupted_by is not None:
        name = signal.Signals(report.interrupted_by).name
        return f"{report.alias}: stopped by {name} after {report.signalled} signals."
    if report.failure is not None:
        return one_line(report.failure)
    sent = report.signalled + report.failed
    return (
        f"{report.alias}: of {sent} signals {report.failed} failed and {report.survivors} didn't"
        " end their session."
    )


def render_bar(done: int, due: int, *, width: int = 40) -> str:
    """Return how far *done* of *due* has come, as a bar for a terminal."""
    filled = width * done // due
    return f"[{'#' * filled}{'.' * (width - filled)}] {done}/{due}"
