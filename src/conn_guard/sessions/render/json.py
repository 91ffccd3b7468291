"""A report as JSON lines."""

from __future__ import annotations

import json

from conn_guard.sessions.report import Outcome, Report
from conn_guard.text import one_line


def render_json(report: Report) -> list[str]:
    """Return *report* as JSON lines: one for each session, one for a failure, and a summary."""
    if report.is_left_out:
        return []
    events: list[dict[str, object]] = [
        _session_event(report.alias, outcome) for outcome in report.outcomes
    ]
    if report.failure is not None:
        failure = {
            "event": "error",
            "alias": report.alias,
            "exit": int(report.exit_code),
            "message": one_line(report.failure),
        }
        events.append(failure)
    # No summary for a run that failed before it acted: zeros would read like "nothing to do".
    if report.failure is None or report.acted_on:
        events.append(
            {
                "event": "summary",
                "alias": report.alias,
                "candidates": report.candidates,
                "idle": report.idle,
                "longest_idle_seconds": (
                    None
                    if report.longest_idle_seconds is None
                    else round(report.longest_idle_seconds, 3)
                ),
                "signalled": report.signalled,
                "spared": report.spared,
                "failed": report.failed,
                "gone": report.gone,
                "survivors": report.survivors,
                "slots_used": report.slots.used if report.slots else None,
                "slots_total": report.slots.total if report.slots else None,
                "slots_exact": report.slots.exact if report.slots else None,
                "seconds": round(report.seconds, 3),
                "dry_run": report.dry_run,
                "status": report.status.value,
                "exit": int(report.exit_code),
            }
        )
    return [json.dumps(event) for event in events]


def _session_event(alias: str, outcome: Outcome) -> dict[str, object]:
    session = outcome.session
    return {
        "event": "session",
        "alias": alias,
        "pid": session.pid,
        "backend_start": session.backend_start.isoformat() if session.backend_start else None,
        "user": session.user,
        "database": session.database,
        "application_name": session.application_name,
        "client": session.client,
        "state": session.state.value if session.state else None,
        "idle_seconds": (
            round(session.in_state_for.total_seconds(), 3) if session.state_change else None
        ),
        "action": outcome.action.value,
        "reason": outcome.reason,
    }
