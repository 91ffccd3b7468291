"""Judges a URL by the sessions that its load left and by the answers that it got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum

from conn_guard.probe.options import Mode, Options
from conn_guard.probe.sightings import Sightings, key
from conn_guard.probe.targets import Target
from conn_guard.sessions.groups import Field, Row
from conn_guard.sessions.report import Slots
from conn_guard.sessions.session import IN_TRANSACTION
from conn_guard.text import printable

FAILED_PERCENT = 1
"""Percent of the requests from which on failures make the verdict unclear."""
SILENT = (
    "no session was opened or used during the load: the URL asks no database, or the alias isn't"
    " the server's (name another with --database)"
)


class Verdict(Enum):
    """The judgement on a URL."""

    LEAKS = "leaks"
    KEEPS = "keeps"
    CLEAN = "clean"
    UNCLEAR = "unclear"


@dataclass(frozen=True, kw_only=True)
class Requests:
    """The requests of both rounds and their answers."""

    statuses: Mapping[int, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    """Requests without a status, by reason."""
    expected: Collection[int] = ()
    """Statuses that are right although they look like an error or a refusal."""
    location: str = ""
    unreachable: str = ""
    longest: timedelta = timedelta(0)

    @property
    def sent(self) -> int:
        """The number of requests."""
        return sum(self.statuses.values()) + sum(self.failures.values())

    @property
    def errors(self) -> int:
        """The number of requests with no answer, or with one from 500 on."""
        return sum(self.failed.values()) + sum(self.failures.values())

    @property
    def failed(self) -> Mapping[int, int]:
        """The answers with a status from 500 on."""
        return self._unexpected(lambda status: status >= 500)

    @property
    def refused(self) -> Mapping[int, int]:
        """The answers that sent the client elsewhere or refused it."""
        return self._unexpected(lambda status: 300 <= status < 500 and status != 304)

    def _unexpected(self, is_meant: Callable[[int], bool]) -> Mapping[int, int]:
        return {
            status: count
            for status, count in self.statuses.items()
            if is_meant(status) and status not in self.expected
        }


@dataclass(frozen=True, kw_only=True)
class UrlReport:
    """The result for one URL in one mode.

    *before*, *peak* and *left* count the application's sessions before the first round, at most,
    and after the last rest.
    """

    target: Target
    mode: Mode
    verdict: Verdict = Verdict.UNCLEAR
    why: str = ""
    requests: Requests = field(default_factory=Requests)
    before: int = 0
    peak: int = 0
    left: int = 0
    leaked: int = 0
    leaked_in_transaction: int = 0
    reused: int = 0
    application_names: Sequence[str] = ()
    """The names without the engine's stamp."""
    last: Sequence[str] = ()
    """The shapes of the last statements of the leaked sessions, else of those left."""
    views: Sequence[str] = ()
    """The views that opened the leaked sessions, where the engine's stamp names them."""
    slots_total: int | None = None
    saw_work: bool = False
    """Whether sessions were seen that the load opened or used."""
    is_silent: bool = False
    """Whether the verdict is unclear for the lack of such sessions alone."""

    @property
    def is_unreachable(self) -> bool:
        """Whether no connection to the web server could be made."""
        return bool(self.requests.unreachable)


def judge(
    target: Target,
    mode: Mode,
    options: Options,
    *,
    seen: Sightings,
    requests: Requests,
    slots: Slots | None,
    stopped: bool = False,
) -> UrlReport:
    """Return the report on *target*, of which *seen* and *requests* were observed.

    *slots* is the fullest limit at its fullest moment. *stopped*: the probe was interrupted.
    """
    found = _find(options, seen, requests, slots)
    unused = found.unused
    others = seen.left_by_others()
    # Twice: the rest in which the others were counted is short, and traffic comes in bursts.
    leaks = len(unused) - 2 * others >= options.least_leaked
    stayed = seen.stayed()
    verdict, why = (
        (Verdict.LEAKS, _leak(unused, seen, options, others))
        if leaks
        else _other_verdict(options, seen, requests, found, stopped=stopped)
    )
    shown = unused or stayed
    return UrlReport(
        target=target,
        mode=mode,
        verdict=verdict,
        why=why,
        requests=requests,
        before=len(seen.before.rows),
        peak=seen.peak,
        left=len(seen.latest.rows),
        leaked=len(unused),
        leaked_in_transaction=sum(each.session.state in IN_TRANSACTION for each in unused),
        reused=len(found.used_again),
        application_names=_most_common(
            each.session.application for each in seen.last_rows.values()
        ),
        last=_most_common(each.last for each in shown),
        views=_most_common(Field.VIEW.of(each) for each in unused),
        slots_total=slots.total if slots else None,
        saw_work=seen.worked,
        is_silent=why == SILENT,
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The sessions of a probe by what they prove."""

    unused: Sequence[Row]
    """The leaked ones."""
    replaced: int
    """Unused ones that ended and that a new session of the same worker may have replaced."""
    unproven: int
    """Unused ones after which no session was opened that would prove a load of the same kind."""
    used_again: Sequence[Row]
    full: Slots | None
    """The fullest limit, if no slot of it was free at one time."""


def _find(options: Options, seen: Sightings, requests: Requests, slots: Slots | None) -> _Found:
    repeated = seen.repeated_by(options.least_leaked, requests.longest)
    unused = [
        row
        for row in seen.unused_since_first_round(requests.longest)
        if row.session.application in repeated
    ]
    used_again = seen.used_again(requests.longest)
    full = slots if slots and slots.used >= slots.total else None
    replaced = unproven = 0
    # A pool may have more sessions than the second round needs, but hardly twice as many. Where no
    # slot was free, the second round could open none.
    if not seen.second_round_opened and not (full and len(unused) > len(used_again)):
        unproven, unused = len(unused), []
    if seen.peak <= options.concurrency:
        # Workers with a session each look like a leak where CONN_MAX_AGE is shorter than the rest.
        there = [row for row in unused if key(row) in seen.latest.by_key]
        replaced, unused = len(unused) - len(there), there
    return _Found(
        unused=unused, replaced=replaced, unproven=unproven, used_again=used_again, full=full
    )


def _leak(unused: Sequence[Row], seen: Sightings, options: Options, others: float) -> str:
    there = seen.latest.by_key
    ended = sum(key(each) not in there for each in unused)
    why = (
        f"the first {options.requests} requests left {_number(len(unused))}{_of(unused)}, and the"
        f" next {options.requests} used none of them"
    )
    if ended:
        why += f"; {ended} of them ended later, unused, as when Python's garbage collector runs"
    if others >= 1:
        why += f"; other traffic explains about {others:.0f} of them"
    return why


def _other_verdict(
    options: Options,
    seen: Sightings,
    requests: Requests,
    found: _Found,
    *,
    stopped: bool,
) -> tuple[Verdict, str]:
    doubt = _doubt(options, seen, requests, found, stopped=stopped)
    if doubt:
        return Verdict.UNCLEAR, doubt
    unused = len(found.unused)
    few = f"; {_sessions(unused)} not used again, fewer than a leak" if unused else ""
    used_again, stayed = found.used_again, len(seen.stayed())
    if used_again:
        held = sum(each.session.state in IN_TRANSACTION for each in used_again)
        open_transactions = f"; {held} of them in an open transaction" if held else ""
        return Verdict.KEEPS, (
            f"{_sessions(len(used_again))} used again, by CONN_MAX_AGE, a pool or a thread that"
            f" lives on{open_transactions}{few}"
        )
    return Verdict.CLEAN, (
        f"{_sessions(stayed)} left, fewer than a leak" if stayed else "no session is left"
    )


def _doubt(
    options: Options,
    seen: Sightings,
    requests: Requests,
    found: _Found,
    *,
    stopped: bool,
) -> str:
    """Return why the sessions tell nothing certain; "" if they do."""
    if requests.unreachable:
        return f"no connection: {requests.unreachable}"
    if stopped:
        failed = f", {requests.errors} of which failed" if requests.errors else ""
        return f"stopped after {requests.sent} requests{failed}"
    if not requests.sent:
        return "no request was sent"
    if requests.errors * 100 >= FAILED_PERCENT * requests.sent:
        return _failures(requests, found.full)
    if sum(requests.refused.values()) * 2 > requests.sent:
        return _refusals(requests, options)
    if opened := seen.opened_in_rests():
        other = f"{_number(len(opened))}{_of(opened)} {'was' if len(opened) == 1 else 'were'}"
        return (
            f"other traffic moved the numbers: {other} opened while the probe rested. Stop it, or"
            " name the server's sessions with --application-name"
        )
    if seen.hides_use:
        return (
            "track_activities is off for the server's role, so PostgreSQL doesn't tell which"
            " sessions are used: switch it on, and start the web server again"
        )
    if not seen.worked:
        return f"no session could be used: {_no_slot(found.full)}" if found.full else SILENT
    if found.replaced >= options.least_leaked:
        return (
            f"{_number(found.replaced)} ended in the second round without a use, as a CONN_MAX_AGE"
            " shorter than the rest ends them, or Python's garbage collector: repeat with a"
            " shorter --settle"
        )
    at_work = len(seen.at_work())
    if at_work >= options.least_leaked:
        return f"{_number(at_work)} still worked after the rest: repeat with a longer --settle"
    if found.used_again:
        return ""
    if found.unproven >= options.least_leaked:
        return (
            f"{_number(found.unproven)} of the first round stayed unused, and the second round"
            " opened none, as if a cache answered: probe a URL that asks the database each time"
        )
    once = len(seen.once_used_in_second_round(requests.longest))
    if once >= options.least_leaked:
        return (
            f"{_number(once)} of the second round stayed after one use, and no later request tells"
            " whether they are used again: repeat with more --requests"
        )
    return ""


def _failures(requests: Requests, full: Slots | None) -> str:
    parts = [f"{count} {reason}" for reason, count in sorted(requests.failures.items())]
    parts += [f"{count} answered {status}" for status, count in sorted(requests.failed.items())]
    why = f"of {requests.sent} requests {', '.join(parts)}"
    return f"{why}; {_no_slot(full)}" if full else why


def _no_slot(full: Slots) -> str:
    return (
        f"all {full.total} slots of the database server were taken: lower --concurrency, or free"
        " slots first"
    )


def _refusals(requests: Requests, options: Options) -> str:
    status, count = Counter(requests.refused).most_common(1)[0]
    why = f"{count} of {requests.sent} requests were answered {status}"
    if requests.location and status < 400:
        login = "probe without --cookie" if options.cookies else "log in by --cookie"
        return f"{why}, a redirect to {requests.location}: probe that URL, or {login}"
    if status in (401, 403):
        return f"{why}: log in by --cookie or --header"
    return f"{why}, so the page wasn't reached; if that is its right answer, add --expect {status}"


def _of(rows: Iterable[Row]) -> str:
    """Return the applications of *rows*, for a sentence; "" where none has a name."""
    names = [printable(name) for name in _most_common(row.session.application for row in rows)]
    return f" of {', '.join(names[:3])}" if names else ""


def _sessions(number: int) -> str:
    return f"{_number(number)} {'is' if number == 1 else 'are'}"


def _number(sessions: int) -> str:
    return "1 session" if sessions == 1 else f"{sessions} sessions"


def _most_common(values: Iterable[str | None]) -> list[str]:
    return [value for value, _ in Counter(filter(None, values)).most_common()]


LEAKS_EXIT = 3
UNCLEAR_EXIT = 4
UNREACHABLE_EXIT = 5


def exit_code(reports: Sequence[UrlReport]) -> int:
    """Return the exit code of a probe with *reports*; a leak weighs most."""
    if any(each.verdict is Verdict.LEAKS for each in reports):
        return LEAKS_EXIT
    if any(each.is_unreachable for each in reports):
        return UNREACHABLE_EXIT
    return UNCLEAR_EXIT if any(each.verdict is Verdict.UNCLEAR for each in reports) else 0
