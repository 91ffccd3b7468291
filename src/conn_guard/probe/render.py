"""The reports of a probe as text for a terminal or a pipe, and as lines of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from conn_guard.probe.verdict import UrlReport, Verdict
from conn_guard.sessions.render.report_text import cut
from conn_guard.text import one_line, printable

APP = "conn_guard"
MIDDLEWARE = "conn_guard.middleware.ConnectionGuardMiddleware"
ENGINE = "conn_guard.engine.postgresql"
CURE_WITHOUT_PROJECT = (
    f"In the server's settings, add {APP!r} to INSTALLED_APPS and {MIDDLEWARE!r} as the first of"
    f" MIDDLEWARE; if that is not enough, set ENGINE = {ENGINE!r}."
)

_HEADER = ("URL", "MODE", "REQUESTS", "ERRORS", "PEAK", "LEFT", "LEAKED", "LAST", "VERDICT")
_NUMBERS = range(2, 7)
_NARROWEST = 9


def render_reports(
    reports: Sequence[UrlReport], *, cure: str, width: int | None = None
) -> list[str]:
    """Return *reports* as a table, and a sentence for each URL that leaks or is unclear.

    *cure* is the sentence that says what to install. *width* is the number of columns of the
    terminal: a wider table has paths instead of URLs, cut in the middle; None cuts none.
    """
    rows = [_HEADER, *(_cells(each, each.target.shown) for each in reports)]
    widths = _widths(rows)
    if width is not None and _total(widths) > width:
        rows = [_HEADER, *(_cells(each, _path(each)) for each in reports)]
        widths = _widths(rows)
        for at in (_HEADER.index("LAST"), 0):
            excess = max(0, _total(widths) - width)
            widths[at] = max(min(widths[at], _NARROWEST), widths[at] - excess)
    lines = [
        "  ".join(
            cell.rjust(size) if at in _NUMBERS else cut(cell, size).ljust(size)
            for at, (cell, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    sentences = [sentence(each) for each in reports if each.verdict in _EXPLAINED]
    if any(each.verdict is Verdict.LEAKS for each in reports):
        sentences.append(cure)
    return [*lines, *([""] if sentences else []), *sentences]


_EXPLAINED = (Verdict.LEAKS, Verdict.UNCLEAR)


def sentence(report: UrlReport) -> str:
    """Return the verdict on one URL as a sentence."""
    words = f"{report.target.shown} ({report.mode.value}) {_VERBS[report.verdict]}: {report.why}"
    if report.verdict is Verdict.LEAKS:
        if report.views:
            words += f"; opened by {', '.join(report.views[:3])}"
        if report.last:
            words += f"; last statement {report.last[0]}"
        if report.leaked_in_transaction:
            words += f"; {report.leaked_in_transaction} hold a transaction open"
    return one_line(f"{words}.")


_VERBS = {
    Verdict.LEAKS: "leaks",
    Verdict.KEEPS: "keeps sessions",
    Verdict.CLEAN: "is clean",
    Verdict.UNCLEAR: "is unclear",
}


def cure(alias: str, apps: Sequence[str], middleware: Sequence[str], engine: str) -> str:
    """Return what ends leaks and is not in these settings yet."""
    if not any(each == APP or each.startswith(f"{APP}.apps.") for each in apps):
        return f"Add {APP!r} to INSTALLED_APPS, and {MIDDLEWARE!r} as the first of MIDDLEWARE."
    if MIDDLEWARE not in middleware:
        return f"Add {MIDDLEWARE!r} as the first of MIDDLEWARE."
    if not engine.startswith(f"{APP}.engine."):
        return f"Set ENGINE = {ENGINE!r} in DATABASES[{alias!r}]."
    return (
        "These settings have app, middleware and engine: if the server runs with them, decorate"
        " what its threads run with conn_guard.closing_connections."
    )


def render_probe_json(
    reports: Sequence[UrlReport], *, exit_code: int, seconds: float
) -> Iterator[str]:
    """Yield a line of JSON for each of *reports*, and the summary."""
    for each in reports:
        yield json.dumps(_event(each))
    verdicts = Counter(each.verdict for each in reports)
    yield json.dumps(
        {
            "event": "summary",
            "urls": len(reports),
            **{each.value: verdicts[each] for each in Verdict},
            "seconds": round(seconds, 3),
            "exit": exit_code,
        }
    )


def render_error(alias: str, exit_code: int, message: str) -> str:
    """Return a run that failed as a line of JSON."""
    event = {"event": "error", "alias": alias, "exit": exit_code, "message": one_line(message)}
    return json.dumps(event)


def render_progress(name: str, done: int, due: int, *, width: int) -> str:
    """Return one line of at most *width* columns that shows how far the requests to *name* are."""
    bar = 20
    filled = bar * done // max(due, 1)
    text = f"[{'#' * filled}{'.' * (bar - filled)}] {done}/{due} "
    return text + cut(printable(name), max(4, width - len(text) - 1))


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _path(report: UrlReport) -> str:
    return report.target.shown.removeprefix(report.target.origin)


def _cells(report: UrlReport, url: str) -> tuple[str, ...]:
    return (
        url,
        report.mode.value,
        str(report.requests.sent),
        str(report.requests.errors),
        str(report.peak),
        str(report.left),
        str(report.leaked),
        printable(report.last[0]) if report.last else "-",
        report.verdict.value,
    )


def _event(report: UrlReport) -> dict[str, object]:
    requests = report.requests
    return {
        "event": "url",
        "url": report.target.shown,
        "method": report.target.method,
        "mode": report.mode.value,
        "requests": requests.sent,
        "statuses": {str(status): count for status, count in requests.statuses.items()},
        "errors": requests.errors,
        "failures": dict(requests.failures),
        "before": report.before,
        "peak": report.peak,
        "left": report.left,
        "leaked": report.leaked,
        "leaked_in_transaction": report.leaked_in_transaction,
        "reused": report.reused,
        "application_names": list(report.application_names),
        "last": list(report.last),
        "views": list(report.views),
        "slots_total": report.slots_total,
        "verdict": report.verdict.value,
        "why": one_line(report.why),
    }
