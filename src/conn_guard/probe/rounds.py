"""Runs the rounds of a probe: load, rest, and looks at the server meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from importlib.util import find_spec
from itertools import product

from django.db import Error

from conn_guard.probe.load import INSTALL, Answers, Load
from conn_guard.probe.options import Mode, Options
from conn_guard.probe.sightings import Look, Mark, Sightings
from conn_guard.probe.targets import (
    Target,
    UnresolvedError,
    refuse_other_hosts,
    target,
)
from conn_guard.probe.verdict import Requests, UrlReport, Verdict, judge
from conn_guard.sessions.census import Limits, nearest_limit
from conn_guard.sessions.groups import Row, Snapshot
from conn_guard.sessions.login import LostError, error_text
from conn_guard.sessions.look import Observer
from conn_guard.sessions.policy import Policy
from conn_guard.sessions.report import Exit, RunError, Slots
from conn_guard.sessions.session import (
    CLIENT_BACKEND,
    OWN_APPLICATIONS,
    PROBE_APPLICATION,
    Session,
)
from conn_guard.sessions.stop import Stop

# None at first: of a small load, each session may live for a few milliseconds alone.
_DENSE_SECONDS = 0.5
_PAUSE_SECONDS = 0.1
_REST_PAUSE_SECONDS = 0.05
_LOOKS_SHARE = 0.2
"""The share of the time that looks may take, so that a large server isn't kept busy by them."""
_WORK_ENDS_WITHIN_SECONDS = 1.0
"""The time that work after an answer has, before a new session counts as other traffic's."""

Progress = Callable[[Target, Mode, int, int], None]
"""Gets the target, its mode, and the requests that are done and due."""


class LostProbeError(RunError):
    """A probe that lost the database; *reports* are those that were made before."""

    def __init__(self, error: RunError, reports: Sequence[UrlReport]) -> None:
        super().__init__(error.exit_code, str(error))
        self.reports = reports


def probe_urls(
    urls: Iterable[str | Target],
    options: Options | None = None,
    *,
    alias: str = "default",
    pooled: bool = False,
    stop: Stop | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[UrlReport]:
    """Put load on each of *urls* in each mode and return a report on each, in this order.

    *alias* leads to the database that the web server uses; *pooled* says that the project declared
    a pooler in session mode. When *stop* is set, the reports so far are returned. *tell* gets a
    line when the login to the database fails at first.

    Raises TargetError for a URL that is none or whose host isn't local, RunError if aiohttp
    isn't installed, and LostProbeError if the database can't be reached.
    """
    options = options or Options()
    targets = [each if isinstance(each, Target) else target(each) for each in urls]
    if find_spec("aiohttp") is None:
        raise RunError(Exit.USAGE, INSTALL)
    try:
        if not options.own_host:
            refuse_other_hosts(targets)
    except UnresolvedError as error:
        raise RunError(Exit.UNREACHABLE, str(error)) from None
    stop = stop or Stop()
    with _Watcher(alias, options, pooled=pooled, stop=stop, tell=tell) as watcher:
        reports: list[UrlReport] = []
        try:
            for each, mode in product(targets, options.modes):
                if stop.signum is None:
                    reports.append(_probe(each, mode, options, watcher, stop, progress))
        except RunError as error:
            raise LostProbeError(error, _clear_without_queries(reports)) from None
        return _clear_without_queries(reports)


class _Watcher:
    """Looks at the sessions of the probed application, over one session of its own."""

    def __init__(
        self,
        alias: str,
        options: Options,
        *,
        pooled: bool,
        stop: Stop,
        tell: Callable[[str], None] | None,
    ) -> None:
        # The policy only says which sessions are the application's; none is judged by it.
        policy = Policy(idle_for=timedelta(days=1), applications=options.applications)
        self.fullest: Slots | None = None
        self._glance_seconds = 0.0
        self._alias = alias
        self._policy = policy
        self._limits: Limits | None = None
        self._observer = Observer(
            alias,
            policy,
            pooled=pooled,
            application_name=PROBE_APPLICATION,
            stop=stop,
            tell=tell,
        )

    def __enter__(self) -> _Watcher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._observer.close()

    def look(self) -> Look:
        """Look once, with the shapes of the last statements. Raises RunError."""
        snapshot = self._observer.look()
        if snapshot.failure is not None:
            raise RunError(snapshot.failed_with, snapshot.failure)
        self._policy, self._limits = snapshot.policy, snapshot.limits
        self._count(snapshot.slots)
        return self._as_look(snapshot.rows, _when(snapshot))

    @property
    def pause_seconds(self) -> float:
        """The shortest pause after the last glance."""
        return self._glance_seconds * (1 / _LOOKS_SHARE - 1)

    def glance(self) -> Look:
        """Look once, without the shapes of the last statements, which takes less time."""
        began = time.monotonic()
        try:
            sessions = self._observer.server().list_sessions(holdings=False)
        except (LostError, Error) as error:
            said = error_text(error, self._alias)
            failure = f"{self._alias}: the probe's own session ended or got no answer: {said}"
            raise RunError(Exit.UNREACHABLE, failure) from None
        if self._limits is not None:
            self._count(nearest_limit(sessions, self._policy, self._limits))
        at = max(each.observed_at for each in sessions)
        self._glance_seconds = time.monotonic() - began
        return self._as_look([Row(session=each) for each in sessions], at)

    def _as_look(self, rows: Iterable[Row], at: datetime) -> Look:
        return Look(at, tuple(each for each in rows if self._is_application(each.session)))

    def _is_application(self, session: Session) -> bool:
        return (
            self._policy.covers(session)
            and session.backend_type == CLIENT_BACKEND
            and not session.is_self
            and session.application_name not in OWN_APPLICATIONS
        )

    def _count(self, slots: Slots | None) -> None:
        if slots and (self.fullest is None or slots.percent > self.fullest.percent):
            self.fullest = slots


def _when(snapshot: Snapshot) -> datetime:
    if snapshot.observed_at is None:
        raise RunError(Exit.UNREACHABLE, f"{snapshot.alias}: the server listed no session")
    return snapshot.observed_at


def _probe(
    target: Target,
    mode: Mode,
    options: Options,
    watcher: _Watcher,
    stop: Stop,
    progress: Progress | None,
) -> UrlReport:
    """Probe one URL in one mode: two rounds, each with a rest."""
    watcher.fullest = None
    seen = Sightings(watcher.look())
    rounds: list[Answers] = []
    for number in (1, 2):
        load = Load(target, mode, options, warms_up=number == 1)
        rounds.append(load.answers)
        tick = _ticker(progress, target, mode, rounds, 2 * options.requests)
        _watch_load(load, seen, watcher, stop, tick)
        seen.mark(Mark.LOADED, number, watcher.glance())
        if stop.signum is not None or (number == 1 and not load.answers.statuses):
            break
        _rest(number, options.settle.total_seconds(), seen, watcher, stop)
        if stop.signum is not None:
            break
    if stop.signum is not None:
        seen.add(watcher.look())
    return judge(
        target,
        mode,
        options,
        seen=seen,
        requests=_sum(rounds, mode, options),
        slots=watcher.fullest,
        stopped=stop.signum is not None,
    )


def _watch_load(
    load: Load, seen: Sightings, watcher: _Watcher, stop: Stop, tick: Callable[[], None]
) -> None:
    began = time.monotonic()
    load.start()
    try:
        while load.runs and stop.signum is None:
            seen.add(watcher.glance())
            tick()
            if time.monotonic() - began > _DENSE_SECONDS:
                stop.sleep(max(_PAUSE_SECONDS, watcher.pause_seconds))
    except BaseException:
        load.stop()  # it must not go on unseen when the database went away
        raise
    if stop.signum is not None:
        load.stop()
    load.join()
    tick()


def _rest(number: int, seconds: float, seen: Sightings, watcher: _Watcher, stop: Stop) -> None:
    """Rest for *seconds*, and look for sessions that other traffic opens."""
    until = time.monotonic() + seconds
    stop.sleep(min(_WORK_ENDS_WITHIN_SECONDS, seconds / 2))
    seen.mark(Mark.QUIET, number, watcher.glance())
    while stop.signum is None and (left := until - time.monotonic()) > 0:
        stop.sleep(min(left, max(_REST_PAUSE_SECONDS, watcher.pause_seconds)))
        seen.add(watcher.glance())
    if stop.signum is None:
        seen.mark(Mark.RESTED, number, watcher.look())


def _ticker(
    progress: Progress | None, target: Target, mode: Mode, rounds: Sequence[Answers], due: int
) -> Callable[[], None]:
    told = -1

    def tick() -> None:
        nonlocal told
        done = sum(each.sent for each in rounds)
        if progress is not None and done != told:
            progress(target, mode, done, due)
        told = done

    return tick


def _sum(rounds: Sequence[Answers], mode: Mode, options: Options) -> Requests:
    statuses: Counter[int] = Counter()
    failures: Counter[str] = Counter()
    for each in rounds:
        statuses += each.statuses
        failures += each.failures
    longest = max(each.longest_seconds for each in rounds)
    if mode is Mode.DISCONNECT:
        # The client doesn't know for how long the server went on with a request.
        longest = max(longest, rounds[0].seconds / 3)
    return Requests(
        statuses=dict(sorted(statuses.items())),
        failures=dict(sorted(failures.items())),
        expected=options.expect,
        location=next((each.location for each in rounds if each.location), ""),
        unreachable=rounds[0].unreachable,
        longest=timedelta(seconds=longest),
    )


def _clear_without_queries(reports: Sequence[UrlReport]) -> list[UrlReport]:
    """Return *reports* with each URL cleared that asks no database, if its server does elsewhere.

    Without such proof, the alias may be another database than the server's.
    """
    proven = {each.target.origin for each in reports if each.saw_work}
    return [
        (
            replace(each, verdict=Verdict.CLEAN, why="it opened and used no session")
            if each.is_silent and each.target.origin in proven
            else each
        )
        for each in reports
    ]
