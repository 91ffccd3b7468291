"""What a reaper did, as a value, and its renderings: this room holds the report and every output
format of it.
"""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from conn_guard.policy import ANY_USER, Policy, Verdict
from conn_guard.sessions import Session
from conn_guard.text import duration, one_line, printable, sql_name


class Exit(IntEnum):
    """The command's exit codes; of several aliases the highest wins."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    PARTIAL = 3
    BLIND = 4
    UNREACHABLE = 5


class Status(Enum):
    """How a run went that had no error."""

    DONE = "done"
    ALREADY_RUNNING = "already_running"
    BELOW_THRESHOLD = "below_threshold"


class Action(Enum):
    """What was done about a session."""

    SIGNALLED = "signalled"
    WOULD_SIGNAL = "would_signal"
    SPARED = "spared"
    NOT_DUE = "not_due"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """A session of the scope, what was done about it, and the reason where there is one."""

    session: Session
    action: Action
    reason: str | None = None


@dataclass(frozen=True)
class Slots:
    """Used and usable slots of the limit that is nearest; *exact* unless rows are hidden that may
    use none.
    """

    used: int
    total: int
    exact: bool

    @property
    def percent(self) -> float:
        """How much of the limit is used; a limit of nothing is used up."""
        return 100 * self.used / self.total if self.total > 0 else 100.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one run did for one alias; *gone* and *survivors* are None where nobody could look
    again.
    """

    alias: str
    address: str = ""
    outcomes: Sequence[Outcome] = ()
    status: Status = Status.DONE
    dry_run: bool = False
    gone: int | None = 0
    survivors: int | None = 0
    slots: Slots | None = None
    census: Mapping[str, tuple[int, float]] | None = None
    """Client sessions of the whole server by state: how many, and the seconds of the longest in
    it.
    """
    hidden: int = 0
    seconds: float = 0.0
    interrupted_by: int | None = None
    """The number of the signal that stopped this run."""
    notes: Sequence[str] = ()
    """What a person should read beside the figures."""
    mirror_of: str | None = None
    """The alias that leads to the same place and was reaped instead."""
    failure: str | None = None
    failed_with: Exit = Exit.DONE

    @property
    def signalled(self) -> int:
        """How many sessions were sent the signal."""
        return self._count(Action.SIGNALLED)

    @property
    def would_signal(self) -> int:
        """How many sessions would have been sent the signal by a run that was no dry one."""
        return self._count(Action.WOULD_SIGNAL)

    @property
    def failed(self) -> int:
        """How many signals the server refused."""
        return self._count(Action.FAILED)

    @property
    def spared(self) -> dict[str, int]:
        """How many sessions were spared, by reason."""
        return dict(
            sorted(
                Counter(
                    each.reason or "" for each in self.outcomes if each.action is Action.SPARED
                ).items()
            )
        )

    @property
    def candidates(self) -> int:
        """How many sessions were at rest for long enough, spared ones among them, the reaper's own
        aside.
        """
        spared = sum(count for reason, count in self.spared.items() if reason != Verdict.SELF.value)
        return self.signalled + self.would_signal + self.failed + spared

    @property
    def exit_code(self) -> int:
        """The exit code that this alias asks for."""
        if self.interrupted_by is not None:
            return 128 + self.interrupted_by
        if self.failure is not None:
            return self.failed_with
        return Exit.PARTIAL if self.failed or self.survivors else Exit.DONE

    @property
    def acted_on(self) -> list[Outcome]:
        """The sessions that the run signalled, would have or could not."""
        return [
            each for each in self.outcomes if each.action not in (Action.SPARED, Action.NOT_DUE)
        ]

    def _count(self, action: Action) -> int:
        return sum(each.action is action for each in self.outcomes)


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


def render_json(report: Report) -> list[str]:
    """Return *report* as JSON lines: one a session, one for a failure, and one for the sum where
    there is something.
    """
    if report.mirror_of is not None:
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
    # A run that failed before it acted has nothing to sum up: zeros would read like "nothing to
    # do".
    if report.failure is None or report.acted_on:
        events.append(
            {
                "event": "summary",
                "alias": report.alias,
                "candidates": report.candidates,
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


def render_advice(policy: Policy) -> list[str]:
    """Return the SQL that would do the work of *policy* inside the server, and as comments when not
    to run it.
    """
    roles = (
        ["ALL"]
        if ANY_USER in policy.users
        else [sql_name(role) for role in policy.users or (policy.login_role,)]
    )
    where = "" if policy.any_database else f" IN DATABASE {sql_name(policy.database)}"
    timeouts = {"idle_session_timeout": policy.idle_for}
    if policy.idle_in_transaction_for is not None:
        timeouts["idle_in_transaction_session_timeout"] = policy.idle_in_transaction_for
    settings = [
        f"ALTER ROLE {role}{where} SET {name} = '{round(timeout.total_seconds() * 1000)}ms';"
        for role in roles
        for name, timeout in timeouts.items()
    ]
    return [
        (
            "-- The server can end idle sessions itself, without a race and without a slot for a"
            " reaper:"
        ),
        *settings,
        "-- It holds for sessions that log in from now on. Don't run it where these roles",
        "--   LISTEN, or keep advisory locks or temporary tables: it spares nobody;",
        (
            "--   come through a pooler, or a pool that keeps connections for longer: take the"
            " pool's own limit"
        ),
        "--   (PgBouncer: server_idle_timeout);",
        (
            "--   have a CONN_MAX_AGE above it without CONN_HEALTH_CHECKS: requests would meet a"
            " closed connection."
        ),
    ]


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


_METRICS: tuple[tuple[str, str], ...] = (
    ("server_sessions", "Client sessions of the server by state."),
    ("server_oldest_idle_seconds", "Seconds that the longest session of a state has been in it."),
    ("server_slots_total", "Slots that applications can use, of the nearest limit."),
    (
        "server_slots_used",
        "Slots in use, of the nearest limit; an upper bound where sessions are hidden.",
    ),
    ("server_sessions_hidden", "Sessions whose state the reaper's role may not see."),
    ("reaper_last_run_signalled", "Sessions that the last run signalled."),
    ("reaper_last_run_spared", "Sessions that the last run spared, by reason."),
    ("reaper_last_run_failed", "Signals that the server refused in the last run."),
    ("reaper_last_run_exit_code", "Exit code of the last run for this alias."),
    ("reaper_last_run_timestamp_seconds", "Unix time of the end of the last run."),
    (
        "reaper_last_success_timestamp_seconds",
        "Unix time of the end of the last run that ended with 0.",
    ),
    ("reaper_last_run_duration_seconds", "Seconds that the last run took."),
)
_LAST_SUCCESS = "reaper_last_success_timestamp_seconds"


def render_metrics(reports: Iterable[Report], *, now: float, earlier: Mapping[str, float]) -> str:
    """Return *reports* as Prometheus' text format; *earlier* has each alias's last success before
    this run.
    """
    samples: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name, _ in _METRICS}
    for report in reports:
        if report.mirror_of is not None:
            continue
        alias = {"alias": report.alias}
        for state, (count, oldest_seconds) in sorted((report.census or {}).items()):
            samples["server_sessions"].append(({**alias, "state": state}, count))
            samples["server_oldest_idle_seconds"].append(
                ({**alias, "state": state}, round(oldest_seconds, 3))
            )
        if report.slots:
            samples["server_slots_total"].append((alias, report.slots.total))
            samples["server_slots_used"].append((alias, report.slots.used))
        if report.census is not None:
            samples["server_sessions_hidden"].append((alias, report.hidden))
        samples["reaper_last_run_signalled"].append((alias, report.signalled))
        for reason, count in report.spared.items():
            samples["reaper_last_run_spared"].append(({**alias, "reason": reason}, count))
        samples["reaper_last_run_failed"].append((alias, report.failed))
        samples["reaper_last_run_exit_code"].append((alias, report.exit_code))
        samples["reaper_last_run_timestamp_seconds"].append((alias, round(now, 3)))
        samples["reaper_last_run_duration_seconds"].append((alias, round(report.seconds, 3)))
        succeeded = report.exit_code == Exit.DONE and report.status is not Status.ALREADY_RUNNING
        success = round(now, 3) if succeeded else earlier.get(report.alias)
        if success is not None:
            samples[_LAST_SUCCESS].append((alias, success))
    lines = []
    for name, meaning in _METRICS:
        if samples[name]:
            lines += [f"# HELP conn_guard_{name} {meaning}", f"# TYPE conn_guard_{name} gauge"]
            lines += [
                f"conn_guard_{name}{_labels(labels)} {value}" for labels, value in samples[name]
            ]
    return "\n".join(lines) + "\n"


def parse_last_success(text: str) -> dict[str, float]:
    """Return the last success of each alias in a file that render_metrics() wrote."""
    found = re.findall(
        rf'^conn_guard_{_LAST_SUCCESS}{{alias="((?:[^"\\]|\\.)*)"}} (\S+)$', text, re.MULTILINE
    )
    return {_unquoted(alias): float(value) for alias, value in found}


def _labels(labels: Mapping[str, str]) -> str:
    quoted = (f'{name}="{_quoted(value)}"' for name, value in labels.items())
    return "{" + ",".join(quoted) + "}"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], value)
