"""Reports as metrics in Prometheus' text format, and the file with them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from conn_guard.sessions.report import Exit, Report, Status

_METRICS: tuple[tuple[str, str], ...] = (
    ("server_sessions", "Client sessions of the server by state."),
    ("server_oldest_idle_seconds", "Seconds of the session that is longest in a state."),
    ("server_slots_usable", "Slots that applications can use, of the fullest limit."),
    (
        "server_slots_used",
        "Slots in use, of the fullest limit; an upper bound where sessions are hidden.",
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
    """Return *reports* in Prometheus' text format.

    *now* is the end of the run in Unix seconds. *earlier* has the last success of each alias before
    this run. A dry run has no ``reaper_last_run_`` metrics, and keeps the earlier success.
    """
    samples: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name, _ in _METRICS}
    for report in reports:
        if report.is_left_out:
            continue
        alias = {"alias": report.alias}
        for state, (count, oldest_seconds) in sorted((report.census or {}).items()):
            samples["server_sessions"].append(({**alias, "state": state}, count))
            samples["server_oldest_idle_seconds"].append(
                ({**alias, "state": state}, round(oldest_seconds, 3))
            )
        if report.slots:
            samples["server_slots_usable"].append((alias, report.slots.total))
            samples["server_slots_used"].append((alias, report.slots.used))
        if report.census is not None:
            samples["server_sessions_hidden"].append((alias, report.hidden))
        succeeded = (
            not report.dry_run
            and report.exit_code == Exit.DONE
            and report.status is not Status.ALREADY_RUNNING
        )
        success = round(now, 3) if succeeded else earlier.get(report.alias)
        if success is not None:
            samples[_LAST_SUCCESS].append((alias, success))
        if report.dry_run:
            continue
        samples["reaper_last_run_signalled"].append((alias, report.signalled))
        for reason, count in report.spared.items():
            samples["reaper_last_run_spared"].append(({**alias, "reason": reason}, count))
        samples["reaper_last_run_failed"].append((alias, report.failed))
        samples["reaper_last_run_exit_code"].append((alias, report.exit_code))
        samples["reaper_last_run_timestamp_seconds"].append((alias, round(now, 3)))
        samples["reaper_last_run_duration_seconds"].append((alias, round(report.seconds, 3)))
    lines = []
    for name, meaning in _METRICS:
        if samples[name]:
            lines += [f"# HELP conn_guard_{name} {meaning}", f"# TYPE conn_guard_{name} gauge"]
            lines += [
                f"conn_guard_{name}{_labels(labels)} {value}" for labels, value in samples[name]
            ]
    return "\n".join(lines) + "\n"


def metrics_after(path: Path, reports: Iterable[Report]) -> str:
    """Return the metrics of *reports*, which end now, for the file *path*.

    An alias that failed keeps the last success that the file has.
    """
    try:
        # A pipe would be waited for.
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        earlier = parse_last_success(text)
    except (OSError, ValueError):
        earlier = {}
    return render_metrics(reports, now=time.time(), earlier=earlier)


def parse_last_success(text: str) -> dict[str, float]:
    """Return the last success of each alias, in Unix seconds, from a file of render_metrics()."""
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
