"""A report as text for a terminal."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from conn_guard.sessions.policy import Verdict
from conn_guard.sessions.report import Outcome, Report, Slots, Status
from conn_guard.text import duration, one_line, printable


def render_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return *outcomes* as the lines of a table; [] for no outcomes."""
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
    """Return *report* as one line."""
    parts = [printable(f"{report.alias} {report.address}".strip())]
    if report.slots:
        parts.append(f"slots {_slots(report.slots)}")
    if report.status is Status.ALREADY_RUNNING:
        return "  ".join([*parts, "already running", f"{report.seconds:.2f} s"])
    if report.status is Status.BELOW_THRESHOLD:
        parts.append("below --when-above")
    parts += [_idle(report), f"due {report.candidates}"]
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


def _idle(report: Report) -> str:
    longest = report.longest_idle_seconds
    return f"idle {report.idle or 0}" + (
        f" (longest {duration(longest)})" if longest is not None else ""
    )


def _slots(slots: Slots) -> str:
    # More sessions than the limit are no error: superusers and roles with reserved slots get in
    # above it.
    bound, up_to = ("", "") if slots.exact else ("≤", "up to ")
    beyond = max(0, slots.used - max(0, slots.total))
    words = f" and {up_to}{beyond} beyond the limit" if beyond else ""
    return (
        f"{bound}{slots.used - beyond}/{slots.total} ({bound}{min(100, slots.percent):.0f}%{words})"
    )


def render_failure(report: Report) -> str:
    """Return in one line why the exit code of *report* isn't 0."""
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
    """Return a progress bar for *done* of *due* sessions."""
    filled = width * done // due
    return f"[{'#' * filled}{'.' * (width - filled)}] {done}/{due}"
