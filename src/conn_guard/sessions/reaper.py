"""Runs the reaper for an alias: log in, list, judge, signal, verify, report."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from shlex import quote

from django.db import Error, connections

from conn_guard.sessions.census import (
    by_state,
    judge_all,
    nearest_limit,
    note_no_session,
    note_none_due,
)
from conn_guard.sessions.login import LostError, Places, error_text, sqlstate
from conn_guard.sessions.parallel import side_by_side
from conn_guard.sessions.policy import Policy, Verdict
from conn_guard.sessions.report import Action, Exit, Outcome, Report, RunError, Status
from conn_guard.sessions.scope import grant, identity, missing_rights, scope
from conn_guard.sessions.server import Server, ServerClient
from conn_guard.sessions.session import REAPER_APPLICATION, Session
from conn_guard.sessions.stop import Stop

logger = logging.getLogger("conn_guard.reaper")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run that don't choose sessions."""

    dry_run: bool = False
    wait: timedelta = timedelta(seconds=5)
    """The longest wait for signalled sessions to end, and for another reaper to finish."""
    when_above: float | None = None
    """Percent of the slots above which sessions are signalled; None: always."""
    pooled: bool = False
    """The project declared a pooler in session mode in front of this alias."""
    repeats: bool = False
    """More runs follow: the session and its lock are kept, and a signal to stop is no failure."""
    connect_for: timedelta | None = None
    """How long a login that fails is tried again; None: LOG_IN_FOR."""
    skips_standbys: bool = False
    in_project: bool = True
    """Errors may advise aliases and CONN_GUARD."""


class Budget:
    """The signals that a run may still send, to the sessions of all its aliases together."""

    def __init__(self, at_most: int | None = None) -> None:
        """*at_most* is None for a run without a limit."""
        self._left = at_most
        self._lock = threading.Lock()

    @property
    def left(self) -> int | None:
        """The number of signals that are left; None without a limit."""
        return self._left

    def take(self) -> bool:
        """Return whether one more session may be signalled, and count it."""
        with self._lock:
            if self._left is None:
                return True
            has_left = self._left > 0
            self._left -= has_left
            return has_left

    def give_back(self) -> None:
        """Count a signal as not sent."""
        with self._lock:
            if self._left is not None:
                self._left += 1


class Reaper(ServerClient):
    """Reaps for one alias; close() ends its own session, which RunOptions.repeats keeps open."""

    def __init__(
        self,
        alias: str,
        policy: Policy,
        options: RunOptions,
        *,
        stop: Stop | None = None,
        progress: Callable[[int, int], None] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """*progress* gets the number of sessions that are done and due; *tell* gets lines at once.

        Only a login that fails is told: everything else is in the report.
        """
        super().__init__(
            alias,
            pooled=options.pooled,
            application_name=REAPER_APPLICATION,
            stop=stop,
            tell=tell,
            connect_for=options.connect_for,
            users=policy.users,
            in_project=options.in_project,
        )
        self._policy = policy
        self._options = options
        self._progress = progress or (lambda done, due: None)
        self._is_locked = False
        self._stands_by = False

    def close(self) -> None:
        """End the reaper's own session, which releases its lock."""
        super().close()
        self._is_locked = False

    def scope(self) -> Policy:
        """Return the policy with the role and the database of the alias; log in if necessary.

        Raises RunError.
        """
        return scope(self.server().session, self.alias, self._policy)

    def reap(
        self,
        *,
        budget: Budget | None = None,
        places: Places | None = None,
        in_atomic_blocks: Collection[str] | None = None,
    ) -> Report:
        """List, judge, signal and verify once; return the report, also of a failure.

        *budget* limits the number of signals. Of the aliases that share *places*, each place is
        reaped once. The aliases *in_atomic_blocks* are refused: by default those of this thread.
        """
        started = time.monotonic()
        if in_atomic_blocks is None:
            in_atomic_blocks = _in_atomic_blocks()
        report = Report(alias=self.alias, dry_run=self._options.dry_run)
        try:
            _refuse_atomic(self.alias, in_atomic_blocks)
            report = self._reap(report, budget or Budget(), places or Places())
        except RunError as error:
            report = replace(report, failure=str(error), failed_with=error.exit_code)
        except LostError as error:
            report = replace(report, failure=self._lost(error), failed_with=Exit.UNREACHABLE)
        except Exception as error:
            logger.debug("The run for %s failed.", self.alias, exc_info=True)
            text = error_text(error, self.alias)
            failure = f"{self.alias}: unexpected {type(error).__name__}: {text}"
            report = replace(report, failure=failure, failed_with=Exit.UNEXPECTED)
        if report.failure is not None or not self._options.repeats:
            self.close()
        if self._stop.signum is not None and not self._options.repeats:
            report = replace(report, interrupted_by=self._stop.signum)
        return replace(report, seconds=time.monotonic() - started)

    def _reap(self, report: Report, budget: Budget, places: Places) -> Report:
        server = self.server()
        policy = self.scope()
        report = replace(report, address=server.session.address)
        if self._options.skips_standbys and server.session.is_standby:
            self.close()  # the next run asks again whether it is one
            note = f"{self.alias} is a standby: skipped; --database {quote(self.alias)} reaps there"
            return replace(report, is_skipped_standby=True, notes=[note])
        first = places.first(identity(server.session, self.alias), self.alias)
        if first != self.alias:
            note = f"{self.alias} leads to the same place as {first}: reaped once"
            return replace(report, mirror_of=first, notes=[note])
        if not self._options.dry_run and not self._lock(server, policy):
            notes = [] if self._stands_by else [self._holder(server, policy)]
            self._stands_by = self._options.repeats
            return replace(report, status=Status.ALREADY_RUNNING, notes=notes)
        self._stands_by = False
        sessions = server.list_sessions()
        report = replace(
            report,
            census=by_state(sessions),
            hidden=sum(each.hidden for each in sessions),
            slots=nearest_limit(sessions, policy, server.limits()),
            notes=note_no_session(sessions, policy),
        )
        _refuse_blind(server, self.alias, sessions, policy)
        judged = judge_all(sessions, policy)
        above = self._options.when_above
        if above is not None and report.slots is not None and report.slots.percent <= above:
            outcomes = [_not_signalled(session, verdict) for session, verdict in judged]
            return replace(report, status=Status.BELOW_THRESHOLD, outcomes=outcomes)
        report = replace(report, outcomes=[_not_signalled(*each) for each in judged])
        # With --every the numbers of such a note would differ each round.
        if not report.candidates and not self._options.repeats:
            notes = [
                f"{self.alias}: {note}" for note in note_none_due(sessions, policy, budget.left)
            ]
            report = replace(report, notes=[*report.notes, *notes])
        return self._act(server, report, judged, budget)

    def _act(
        self,
        server: Server,
        report: Report,
        judged: Sequence[tuple[Session, Verdict]],
        budget: Budget,
    ) -> Report:
        due = sum(verdict is Verdict.REAP for _, verdict in judged)
        outcomes: list[Outcome] = []
        done = 0
        failure = None
        for session, verdict in judged:
            if verdict is not Verdict.REAP:
                outcomes.append(_not_signalled(session, verdict))
                continue
            if not budget.take():
                outcome = _not_signalled(session, Verdict.MAX)
            elif self._options.dry_run or self._stop.signum is not None or failure:
                outcome = _not_signalled(session, verdict)
            else:
                try:
                    outcome = _signalled(server, session)
                except LostError as error:
                    failure = self._lost(error)
                    outcome = Outcome(session, Action.FAILED, "connection_lost")
                if outcome.action is Action.SPARED or outcome.reason == "permission_denied":
                    budget.give_back()
            done += 1
            outcomes.append(outcome)
            self._progress(done, due)
        report = replace(report, outcomes=outcomes)
        if failure:
            return _unverified(report, failure, Exit.UNREACHABLE)
        return self._verify(server, report)

    def _verify(self, server: Server, report: Report) -> Report:
        signalled = [each.session for each in report.outcomes if each.action is Action.SIGNALLED]
        left = signalled
        until = time.monotonic() + self._options.wait.total_seconds()
        pause = 0.01
        try:
            while (
                left
                and (left := server.still_there(left))
                and self._stop.signum is None
                and time.monotonic() < until
            ):
                self._stop.sleep(pause)
                pause = min(2 * pause, 0.25)
        except LostError as error:
            return _unverified(report, self._lost(error), Exit.UNREACHABLE)
        except Error as error:
            failure = (
                f"{self.alias}: the reaper could not look whether the sessions have left:"
                f" {error_text(error, self.alias)}"
            )
            return _unverified(report, failure, Exit.UNEXPECTED)
        return replace(report, gone=len(signalled) - len(left), survivors=len(left))

    def _lock(self, server: Server, policy: Policy) -> bool:
        until = time.monotonic() + self._options.wait.total_seconds()
        while not self._is_locked:
            self._is_locked = server.try_lock(_scope_number(policy))
            if self._is_locked or self._stop.signum is not None or time.monotonic() >= until:
                break
            self._stop.sleep(0.1)
        return self._is_locked

    def _holder(self, server: Server, policy: Policy) -> str:
        holder = server.lock_holder(_scope_number(policy))
        if holder is None:
            return f"{self.alias}: another idle_reaper was at work here until now"
        pid, age_seconds = holder
        age = "" if age_seconds is None else f", connected for {age_seconds:.0f} s"
        return f"{self.alias}: another idle_reaper is at work here: pid {pid}{age}"

    def _lost(self, error: LostError) -> str:
        return f"{self.alias}: the reaper's own session ended: {error_text(error, self.alias)}"


def reap_all(
    reapers: Sequence[Reaper],
    *,
    stop: Stop,
    at_most: int | None = None,
    jobs: int | None = None,
    spread: timedelta = timedelta(0),
) -> Iterator[Report]:
    """Run each of *reapers* once, side by side, and yield the reports in their order.

    The same place is reaped once. *at_most* limits the number of signals of all reapers together.
    *jobs* and *spread* are those of side_by_side().
    """
    # Another thread has other connections of Django's, and would see no atomic block.
    budget, places, in_atomic_blocks = Budget(at_most), Places(), _in_atomic_blocks()

    def reap(reaper: Reaper) -> Report:
        return reaper.reap(budget=budget, places=places, in_atomic_blocks=in_atomic_blocks)

    yield from side_by_side(reapers, reap, stop=stop, jobs=jobs, spread=spread)


def end_chosen(
    server: Server, alias: str, policy: Policy, chosen: Collection[tuple[int, datetime | None]]
) -> Iterator[Outcome]:
    """Judge all sessions again, signal those of *chosen* that are due, and yield their outcomes.

    *chosen* has a pid and a backend_start for each session; those that have ended are left out.
    Raises RunError, LostError and Django's database errors; the outcomes before are true.
    """
    sessions = server.list_sessions()
    _refuse_blind(server, alias, sessions, policy)
    for session, verdict in judge_all(sessions, policy):
        if (session.pid, session.backend_start) not in chosen:
            continue
        if verdict is not Verdict.REAP:
            yield _not_signalled(session, verdict)
            continue
        try:
            outcome = _signalled(server, session)
        except LostError:
            yield Outcome(session, Action.FAILED, "connection_lost")
            raise
        yield outcome


def _signalled(server: Server, session: Session) -> Outcome:
    try:
        is_signalled = server.signal(session)
    except Error as error:
        reasons = {"42501": "permission_denied", "57014": "statement_timeout"}
        return Outcome(session, Action.FAILED, reasons.get(sqlstate(error) or "", "error"))
    if is_signalled:
        return Outcome(session, Action.SIGNALLED)
    return _not_signalled(session, Verdict.MOVED_ON)


def _not_signalled(session: Session, verdict: Verdict) -> Outcome:
    if verdict is Verdict.REAP:
        return Outcome(session, Action.WOULD_SIGNAL)
    return Outcome(session, Action.SPARED if verdict.spares else Action.NOT_DUE, verdict.value)


def _unverified(report: Report, failure: str, exit_code: Exit) -> Report:
    return replace(report, gone=None, survivors=None, failure=failure, failed_with=exit_code)


def _in_atomic_blocks() -> set[str]:
    """Return the aliases whose connection of this thread is in an atomic block."""
    return {
        connection.alias
        for connection in connections.all(initialized_only=True)
        if connection.in_atomic_block
    }


def _refuse_atomic(alias: str, in_atomic_blocks: Collection[str]) -> None:
    if alias in in_atomic_blocks:
        raise RunError(
            Exit.USAGE,
            f"{alias}: idle_reaper was called inside transaction.atomic(). Call it outside:"
            " inside a transaction the server checks old rows before it signals.",
        )


def _refuse_blind(server: Server, alias: str, sessions: Sequence[Session], policy: Policy) -> None:
    faults, roles = missing_rights(sessions, policy)
    if faults:
        raise RunError(
            Exit.BLIND,
            f"{alias}: role {policy.login_role} {faults} of the sessions in scope, so"
            f" no session was signalled. Let an administrator run: {grant(server, roles)}",
        )


def _scope_number(policy: Policy) -> int:
    """Return a number that is equal for two reapers which choose sessions by the same filters."""
    names = (
        policy.users or (policy.login_role,),
        policy.applications,
        policy.clients,
        policy.excluded_users,
        policy.excluded_applications,
        policy.excluded_clients,
    )
    # The order in which they were given changes nothing.
    text = repr((policy.any_database, [sorted(set(map(str, each))) for each in names]))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big", signed=True)
