"""The reaper: this room holds one run of it, from connecting to the report."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, InterfaceError, OperationalError, connections

from conn_guard.policy import ANY_USER, Policy, Verdict, judge, keep_recent
from conn_guard.postgres import Identity, InTransactionError, LostError, PooledError, Server, TooOldError, sqlstate
from conn_guard.reports import Action, Exit, Outcome, Report, Slots, Status, one_line
from conn_guard.sessions import CLIENT_BACKEND, REAPER_APPLICATION, Session

CONNECT_FOR = timedelta(seconds=30)
"""How long a failing log-in is tried again: slots come free as connections end."""


class Stop:
    """Whether somebody asked us to stop, and a sleep that hears it."""

    signum: int | None = None

    def sleep(self, seconds: float) -> None:
        """Sleep for *seconds*, or until asked to stop."""
        # In slices, because an Event that a signal handler sets can deadlock with the wait that it interrupts.
        until = time.monotonic() + seconds
        while self.signum is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))


@dataclass(frozen=True, kw_only=True)
class Orders:
    """How to reap; the policy says whom."""

    dry_run: bool = False
    wait: timedelta = timedelta(seconds=5)
    when_above: float | None = None
    """Percent of the slots; None: always."""
    pooled: bool = False
    """The project declared a pooler in session mode in front of this alias."""


class _FailedError(Exception):
    def __init__(self, exit_code: Exit, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Reaper:
    """Reaps for one alias; its one session stays open from run to run until close()."""

    def __init__(
        self,
        alias: str,
        policy: Policy,
        orders: Orders,
        *,
        stop: Stop | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.alias = alias
        self._asked = policy
        self._orders = orders
        self._stop = stop or Stop()
        self._progress = progress or (lambda done, total: None)
        self._server: Server | None = None
        self._locked = False
        self._last_seen: Server | None = None

    def __enter__(self) -> Reaper:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the reaper's own session, and its lock with it."""
        if self._server is not None:
            self._server.close()
        self._server = None
        self._locked = False

    def identity(self) -> Identity:
        """Connect where need be and return where this alias leads to."""
        return self._connected().identity

    def reap(self, *, at_most: int | None = None) -> Report:
        """List, judge, signal and verify once, with *at_most* so many signals; return what was done, also on failure."""
        started = time.monotonic()
        report = Report(alias=self.alias, dry_run=self._orders.dry_run)
        try:
            report = self._reap(report, at_most)
        except _FailedError as failed:
            report = replace(report, failure=str(failed), failed_with=failed.exit_code)
            self.close()
        except LostError as lost:
            report = replace(report, failure=_lost(lost), failed_with=Exit.UNREACHABLE)
            self.close()
        except Error as error:
            report = replace(report, failure=one_line(str(error)), failed_with=Exit.UNEXPECTED)
            self.close()
        if self._stop.signum is not None:
            report = replace(report, interrupted_by=self._stop.signum)
        return replace(report, seconds=time.monotonic() - started)

    def _reap(self, report: Report, at_most: int | None) -> Report:
        _refuse_atomic(self.alias)
        server = self._connected()
        policy = replace(self._asked, login_role=server.login_role, database=server.database)
        report = replace(report, address=server.address)
        if not self._orders.dry_run and not self._lock(server, policy):
            return replace(report, status=Status.ALREADY_RUNNING, notes=[self._holder(server, policy)])
        sessions = server.list_sessions()
        report = replace(
            report,
            census=_census(sessions),
            hidden=sum(each.hidden for each in sessions),
            slots=_slots(server, sessions, policy),
            notes=_notes(sessions, policy),
        )
        _refuse_blind(sessions, policy)
        judged = keep_recent(((each, judge(each, policy)) for each in sessions if policy.covers(each)), policy.keep)
        above = self._orders.when_above
        if above is not None and report.slots is not None and report.slots.percent <= above:
            return replace(
                report, status=Status.BELOW_THRESHOLD, outcomes=[_undone(session, verdict) for session, verdict in judged]
            )
        return self._act(server, report, judged, at_most)

    def _act(self, server: Server, report: Report, judged: Sequence[tuple[Session, Verdict]], at_most: int | None) -> Report:
        outcomes: list[Outcome] = []
        signalled: list[Session] = []
        due = sum(verdict is Verdict.REAP for _, verdict in judged)
        lost: LostError | None = None
        done = 0
        for session, verdict in judged:
            if verdict is not Verdict.REAP:
                outcomes.append(_undone(session, verdict))
                continue
            if at_most is not None and done >= at_most:
                outcomes.append(_undone(session, Verdict.MAX))
                continue
            if self._orders.dry_run or self._stop.signum is not None or lost:
                outcomes.append(_undone(session, verdict))
                done += 1
                continue
            try:
                outcome = _signal(server, session)
            except LostError as error:
                lost = error
                outcome = Outcome(session, Action.FAILED, "connection_lost")
            if outcome.action is Action.SIGNALLED:
                signalled.append(session)
                done += 1
            outcomes.append(outcome)
            self._progress(len(outcomes), due)
        report = replace(report, outcomes=outcomes)
        if lost:
            self.close()
            return replace(report, gone=None, survivors=None, failure=_lost(lost), failed_with=Exit.UNREACHABLE)
        return self._verify(server, report, signalled)

    def _verify(self, server: Server, report: Report, signalled: Sequence[Session]) -> Report:
        until = time.monotonic() + self._orders.wait.total_seconds()
        pause = 0.02
        left = list(signalled)
        try:
            while left:
                left = server.still_there(left)
                if not left or self._stop.signum is not None or time.monotonic() >= until:
                    break
                self._stop.sleep(pause)
                pause = min(2 * pause, 0.25)
        except LostError as lost:
            self.close()
            return replace(report, gone=None, survivors=None, failure=_lost(lost), failed_with=Exit.UNREACHABLE)
        return replace(report, gone=len(signalled) - len(left), survivors=len(left))

    def _connected(self) -> Server:
        if self._server is None:
            self._server = self._last_seen = self._connect()
        return self._server

    def _connect(self) -> Server:
        until = time.monotonic() + CONNECT_FOR.total_seconds()
        while True:
            try:
                return Server(self.alias, pooled=self._orders.pooled)
            except PooledError:
                raise _FailedError(Exit.USAGE, _pooled(self.alias)) from None
            except TooOldError:
                raise _FailedError(Exit.USAGE, f"The server of {self.alias!r} is older than PostgreSQL 14.") from None
            except (LostError, OperationalError, InterfaceError) as error:
                words = one_line(str(error))
            except (Error, ImproperlyConfigured) as error:
                raise _FailedError(Exit.USAGE, f"DATABASES[{self.alias!r}] is wrong: {one_line(str(error))}") from None
            if self._stop.signum is not None or time.monotonic() >= until:
                raise _FailedError(Exit.UNREACHABLE, self._unreachable(words))
            self._stop.sleep(random.uniform(0.1, 0.5))  # noqa: S311  (jitter, no secret)

    def _lock(self, server: Server, policy: Policy) -> bool:
        scope = _scope(policy)
        until = time.monotonic() + self._orders.wait.total_seconds()
        while not self._locked:
            self._locked = server.try_lock(scope)
            if self._locked or self._stop.signum is not None or time.monotonic() >= until:
                break
            self._stop.sleep(0.1)
        return self._locked

    def _holder(self, server: Server, policy: Policy) -> str:
        holder = server.lock_holder(_scope(policy))
        if holder is None:
            return f"{self.alias}: another idle_reaper was at work here until now."
        pid, age_seconds = holder
        age = "" if age_seconds is None else f", for {age_seconds:.0f} s"
        return f"{self.alias}: another idle_reaper is at work here: pid {pid}{age}."

    def _unreachable(self, words: str) -> str:
        seen = self._last_seen
        advice = (
            "Check HOST, PORT, USER and PASSWORD. If every slot is taken: a superuser application ignores every limit, so "
            "make its role NOSUPERUSER; on PostgreSQL 16 and newer, GRANT pg_use_reserved_connections to a reaper's role; "
            "on 14 and 15, set a CONNECTION LIMIT on the application's roles, or let idle_reaper --every keep its session."
        )
        if seen is not None:
            advice = "It is tried again in the next round."
        return f"{self.alias}: can't connect: {words} {advice}"


def _signal(server: Server, session: Session) -> Outcome:
    try:
        sent = server.signal(session)
    except InTransactionError:
        raise
    except Error as error:
        reason = {"42501": "permission_denied", "57014": "statement_timeout"}.get(sqlstate(error) or "", "error")
        return Outcome(session, Action.FAILED, reason)
    return Outcome(session, Action.SIGNALLED) if sent else _undone(session, Verdict.MOVED_ON)


def _undone(session: Session, verdict: Verdict) -> Outcome:
    if verdict is Verdict.REAP:
        return Outcome(session, Action.WOULD_SIGNAL)
    return Outcome(session, Action.SPARED if verdict.spares else Action.NOT_DUE, verdict.value)


def _refuse_atomic(alias: str) -> None:
    for connection in connections.all(initialized_only=True):
        if connection.alias == alias and connection.in_atomic_block:
            raise _FailedError(
                Exit.USAGE,
                f"idle_reaper was called inside transaction.atomic() on {alias!r}. Call it outside: in a transaction the "
                "server would look at a stale copy before it signals.",
            )


def _refuse_blind(sessions: Sequence[Session], policy: Policy) -> None:
    victims = [each for each in sessions if policy.might_reap(each)]
    hidden = sum(each.hidden for each in victims)
    forbidden = sum(not each.may_signal for each in victims)
    if not hidden and not forbidden:
        return
    missing = ["pg_read_all_stats"] * bool(hidden) + ["pg_signal_backend"] * bool(forbidden)
    faults = [f"may not see {hidden}"] * bool(hidden) + [f"may not signal {forbidden}"] * bool(forbidden)
    raise _FailedError(
        Exit.BLIND,
        f"Role {policy.login_role} {' and '.join(faults)} of the sessions that it is asked to judge; nobody was signalled. "
        f"Run as an administrator: GRANT {', '.join(missing)} TO {quoted(policy.login_role)};",
    )


def _notes(sessions: Sequence[Session], policy: Policy) -> list[str]:
    if policy.users:
        return []
    alone = not any(
        each.user == policy.login_role
        and (policy.any_database or each.database == policy.database)
        and each.application_name != REAPER_APPLICATION
        for each in sessions
    )
    hint = f"role {policy.login_role} has no other session here; name the application's role with --user"
    return [hint] if alone else []


def _census(sessions: Sequence[Session]) -> dict[str, tuple[int, float]]:
    census: dict[str, tuple[int, float]] = {}
    for each in sessions:
        if each.backend_type == CLIENT_BACKEND and each.state is not None:
            count, oldest = census.get(each.state.value, (0, 0.0))
            census[each.state.value] = (count + 1, max(oldest, each.in_state_for.total_seconds()))
    return census


def _slots(server: Server, sessions: Sequence[Session], policy: Policy) -> Slots:
    # A hidden row may be a parallel worker or a walsender, which take no slot: then the sum is an upper bound.
    users = [each for each in sessions if each.database and (each.hidden or each.backend_type == CLIENT_BACKEND)]
    exact = not any(each.hidden for each in users)
    total, database_limit, role_limits = server.slots()
    of_role = Counter(each.user for each in users)
    roles = [name for name in policy.users if name != ANY_USER] or [policy.login_role]
    limits = [Slots(len(users), total, exact)]
    limits += [Slots(of_role[role], role_limits[role], exact) for role in roles if role in role_limits]
    if database_limit is not None:
        limits.append(Slots(sum(each.database == policy.database for each in users), database_limit, exact))
    return max(limits, key=lambda each: each.percent)


def _scope(policy: Policy) -> int:
    names = (
        policy.users or (policy.login_role,),
        policy.any_database,
        policy.applications,
        policy.excluded_applications,
        policy.excluded_users,
        [str(network) for network in (*policy.clients, None, *policy.excluded_clients)],
    )
    digest = hashlib.sha256(repr(names).encode()).digest()
    return int.from_bytes(digest[:4], "big", signed=True)


def _lost(lost: LostError) -> str:
    return f"The server ended the reaper's own session: {one_line(str(lost))}"


def _pooled(alias: str) -> str:
    return (
        f"A pooler stands between {alias!r} and the server, where a reaper would act for others. Point an alias of its own "
        f"straight at the server and name it with --database, or set CONN_GUARD['POOLER'] = {{{alias!r}: 'session'}} where "
        "the pooler runs in session mode."
    )


def quoted(identifier: str) -> str:
    """Return *identifier* as SQL writes it."""
    plain = identifier.isidentifier() and identifier.islower() and identifier.isascii()
    return identifier if plain else '"' + identifier.replace('"', '""') + '"'
