"""The reaper: this room holds a run of it, from connecting to the report."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, InterfaceError, OperationalError, connections

from conn_guard.sessions.census import by_state, nearest_limit, notes
from conn_guard.sessions.login import LostError, PooledError, TooOldError, sqlstate, words
from conn_guard.sessions.policy import Policy, Verdict, judge, keep_recent
from conn_guard.sessions.render.metrics import parse_last_success, render_metrics
from conn_guard.sessions.report import Action, Exit, Outcome, Report, Status
from conn_guard.sessions.server import SIGNALS_A_MESSAGE, Identity, Server
from conn_guard.sessions.session import Session
from conn_guard.text import one_line, sql_name

logger = logging.getLogger("conn_guard.reaper")

CONNECT_FOR = timedelta(seconds=30)
"""How long a failing log-in is tried again: slots come free as connections end."""


class Stop:
    """Whether somebody asked us to stop, and a sleep that hears it."""

    signum: int | None = None

    def sleep(self, seconds: float) -> None:
        """Sleep for *seconds*, or until asked to stop."""
        # In slices, because an Event that a signal handler sets can deadlock with the very wait
        # that it interrupts.
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
    stays: bool = False
    """There will be another round, so being stopped is a regular end and a lock is kept until
    then.
    """


class ReaperError(Exception):
    """A run can't go on; the text says in one line why and what to type."""

    def __init__(self, exit_code: Exit, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Reaper:
    """Reaps for one alias; its one session stays open from round to round until close()."""

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
        self._progress = progress or (lambda done, due: None)
        self._server: Server | None = None
        self._last_seen: Server | None = None
        self._is_locked = False
        self._stands_by = False

    def __enter__(self) -> Reaper:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the reaper's own session, and its lock with it."""
        if self._server is not None:
            self._server.close()
        self._server = None
        self._is_locked = False

    def scope(self) -> Policy:
        """Connect where need be and return the policy with the role and the database that the alias
        leads to.
        """
        server = self._connected()
        return replace(self._asked, login_role=server.login_role, database=server.database)

    def reap(
        self, *, at_most: int | None = None, seen: dict[Identity, str] | None = None
    ) -> Report:
        """List, judge, signal and verify once, with *at_most* so many signals; return what was
        done, also on failure.

        *seen* has the aliases of this round by where they lead to: one of them is not reaped twice.
        """
        started = time.monotonic()
        report = Report(alias=self.alias, dry_run=self._orders.dry_run)
        try:
            report = self._reap(report, at_most, {} if seen is None else seen)
        except ReaperError as error:
            report = replace(report, failure=str(error), failed_with=error.exit_code)
        except LostError as error:
            report = replace(report, failure=self._lost(error), failed_with=Exit.UNREACHABLE)
        except Exception as error:
            logger.debug("The run for %s failed.", self.alias, exc_info=True)
            told = f"{self.alias}: unexpected {type(error).__name__}: {words(error, self.alias)}"
            report = replace(report, failure=told, failed_with=Exit.UNEXPECTED)
        if report.failure is not None or not self._orders.stays:
            self.close()
        if self._stop.signum is not None and not self._orders.stays:
            report = replace(report, interrupted_by=self._stop.signum)
        return replace(report, seconds=time.monotonic() - started)

    def _reap(self, report: Report, at_most: int | None, seen: dict[Identity, str]) -> Report:
        _refuse_atomic(self.alias)
        server = self._connected()
        policy = self.scope()
        report = replace(report, address=server.address)
        if (first := seen.setdefault(server.identity, self.alias)) != self.alias:
            note = f"{self.alias} leads to the same place as {first}: reaped once"
            return replace(report, mirror_of=first, notes=[note])
        if not self._orders.dry_run and not self._lock(server, policy):
            told = [] if self._stands_by else [self._holder(server, policy)]
            self._stands_by = self._orders.stays
            return replace(report, status=Status.ALREADY_RUNNING, notes=told)
        self._stands_by = False
        sessions = server.list_sessions()
        report = replace(
            report,
            census=by_state(sessions),
            hidden=sum(each.hidden for each in sessions),
            slots=nearest_limit(sessions, policy, server.limits()),
            notes=notes(sessions, policy),
        )
        _refuse_blind(server, self.alias, sessions, policy)
        judged = keep_recent(
            [(each, judge(each, policy)) for each in sessions if policy.covers(each)], policy.keep
        )
        above = self._orders.when_above
        if above is not None and report.slots is not None and report.slots.percent <= above:
            outcomes = [_undone(session, verdict) for session, verdict in judged]
            return replace(report, status=Status.BELOW_THRESHOLD, outcomes=outcomes)
        return self._act(server, report, judged, at_most)

    def _act(
        self,
        server: Server,
        report: Report,
        judged: Sequence[tuple[Session, Verdict]],
        at_most: int | None,
    ) -> Report:
        fates: list[Outcome] = []
        failure = None
        due = [session for session, verdict in judged if verdict is Verdict.REAP]
        while left := due[len(fates) :]:
            spent = sum(each.action in (Action.SIGNALLED, Action.WOULD_SIGNAL) for each in fates)
            batch = left[
                : SIGNALS_A_MESSAGE if at_most is None else min(SIGNALS_A_MESSAGE, at_most - spent)
            ]
            if not batch:
                fates += [_undone(session, Verdict.MAX) for session in left]
            elif self._orders.dry_run or self._stop.signum is not None or failure:
                fates += [_undone(session, Verdict.REAP) for session in batch]
            else:
                try:
                    fates += map(_outcome, batch, server.signal(batch))
                except LostError as error:
                    failure = self._lost(error)
                    fates += [
                        Outcome(session, Action.FAILED, "connection_lost") for session in batch
                    ]
            self._progress(len(fates), len(due))
        of_due = iter(fates)
        report = replace(
            report,
            outcomes=[
                next(of_due) if verdict is Verdict.REAP else _undone(session, verdict)
                for session, verdict in judged
            ],
        )
        if failure:
            return self._unverified(report, failure, Exit.UNREACHABLE)
        return self._verify(server, report)

    def _verify(self, server: Server, report: Report) -> Report:
        signalled = [each.session for each in report.outcomes if each.action is Action.SIGNALLED]
        left = signalled
        until = time.monotonic() + self._orders.wait.total_seconds()
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
            return self._unverified(report, self._lost(error), Exit.UNREACHABLE)
        except Error as error:
            told = (
                f"{self.alias}: nobody could look whether the sessions have left:"
                f" {words(error, self.alias)}"
            )
            return self._unverified(report, told, Exit.UNEXPECTED)
        return replace(report, gone=len(signalled) - len(left), survivors=len(left))

    def _unverified(self, report: Report, failure: str, exit_code: Exit) -> Report:
        return replace(report, gone=None, survivors=None, failure=failure, failed_with=exit_code)

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
                raise ReaperError(Exit.USAGE, _pooled(self.alias)) from None
            except TooOldError:
                raise ReaperError(
                    Exit.USAGE, f"The server of {self.alias!r} is older than PostgreSQL 14."
                ) from None
            except (LostError, OperationalError, InterfaceError) as error:
                said = one_line(words(error, self.alias))
            except (Error, ImproperlyConfigured) as error:
                told = f"DATABASES[{self.alias!r}] leads to no session: {words(error, self.alias)}"
                raise ReaperError(Exit.USAGE, told) from None
            if self._stop.signum is not None or time.monotonic() >= until:
                raise ReaperError(
                    Exit.UNREACHABLE, f"{self.alias}: can't connect: {said} {self._advice(said)}"
                )
            self._stop.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, no secret

    def _lock(self, server: Server, policy: Policy) -> bool:
        until = time.monotonic() + self._orders.wait.total_seconds()
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
        return f"{self.alias}: the reaper's own session ended: {words(error, self.alias)}"

    def _advice(self, said: str) -> str:
        nosuperuser = "make the application's role NOSUPERUSER, for no limit binds a superuser"
        reserve = (
            "set reserved_connections and GRANT pg_use_reserved_connections to a role of the"
            " reaper's own"
        )
        limit = (
            "set a CONNECTION LIMIT on the application's roles, or let idle_reaper --every keep its"
            " one session open"
        )
        server = self._last_seen
        if server is not None and server.is_superuser:
            cure = nosuperuser
        elif server is not None:
            cure = reserve if server.version_num >= 160000 else limit
        elif (
            "pg_use_reserved_connections" in said
        ):  # a name that no translation touches, known from 16 on
            cure = reserve
        else:
            cure = f"{nosuperuser}; from PostgreSQL 16 on, {reserve}; on 14 and 15, {limit}"
        return f"Check HOST, PORT, USER and PASSWORD; if every slot is taken: {cure}."


def reap_all(
    reapers: Iterable[Reaper], *, stop: Stop, at_most: int | None = None
) -> Iterator[Report]:
    """Reap once for each of *reapers* and yield the reports; aliases that lead to the same place
    are reaped once.
    """
    seen: dict[Identity, str] = {}
    for reaper in reapers:
        if stop.signum is not None:
            break
        report = reaper.reap(at_most=at_most, seen=seen)
        if at_most is not None:
            at_most -= report.signalled + report.would_signal
        yield report


def write_metrics(path: Path, reports: Iterable[Report]) -> None:
    """Write *reports* as a Prometheus textfile in one move; an alias that failed keeps its earlier
    last success.
    """
    try:
        earlier = parse_last_success(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    text = render_metrics(reports, now=time.time(), earlier=earlier)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
    # The collector runs as somebody else.
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _outcome(session: Session, answer: bool | Error) -> Outcome:  # noqa: FBT001 - an answer, no flag
    if isinstance(answer, Error):
        reason = {"42501": "permission_denied", "57014": "statement_timeout"}.get(
            sqlstate(answer) or "", "error"
        )
        return Outcome(session, Action.FAILED, reason)
    return Outcome(session, Action.SIGNALLED) if answer else _undone(session, Verdict.MOVED_ON)


def _undone(session: Session, verdict: Verdict) -> Outcome:
    if verdict is Verdict.REAP:
        return Outcome(session, Action.WOULD_SIGNAL)
    return Outcome(session, Action.SPARED if verdict.spares else Action.NOT_DUE, verdict.value)


def _refuse_atomic(alias: str) -> None:
    for connection in connections.all(initialized_only=True):
        if connection.alias == alias and connection.in_atomic_block:
            raise ReaperError(
                Exit.USAGE,
                f"{alias}: idle_reaper was called inside transaction.atomic(). Call it outside:"
                " inside a transaction the server looks at a stale copy before it signals.",
            )


def _refuse_blind(server: Server, alias: str, sessions: Sequence[Session], policy: Policy) -> None:
    victims = [each for each in sessions if policy.might_reap(each)]
    hidden = sum(each.hidden for each in victims)
    forbidden = sum(not each.may_signal for each in victims)
    faults = [f"may not see {hidden}"] * bool(hidden) + [f"may not signal {forbidden}"] * bool(
        forbidden
    )
    grants = ["pg_read_all_stats"] * bool(hidden) + ["pg_signal_backend"] * bool(forbidden)
    if faults:
        raise ReaperError(
            Exit.BLIND,
            f"{alias}: role {policy.login_role} {' and '.join(faults)} of the sessions that it was"
            " asked to judge, so nobody was signalled. Let an administrator run:"
            f" {_grant(server, grants)}",
        )


def _grant(server: Server, rights: Sequence[str]) -> str:
    """Return the SQL that gives the login role *rights* that it can use, also one that inherits
    none.
    """
    role = sql_name(server.login_role)
    grant = f"GRANT {', '.join(rights)} TO {role}"
    if server.inherits_grants():
        return f"{grant};"
    # From 16 on it is each grant that is inherited or not, before it is the role.
    return (
        f"{grant} WITH INHERIT TRUE;"
        if server.version_num >= 160000
        else f"ALTER ROLE {role} INHERIT; {grant};"
    )


def _scope_number(policy: Policy) -> int:
    """Return a number that two reapers share exactly when they choose sessions by the same names
    and addresses.
    """
    networks = [str(network) for network in (*policy.clients, None, *policy.excluded_clients)]
    names = (
        policy.users or (policy.login_role,),
        policy.any_database,
        policy.applications,
        policy.excluded_applications,
        policy.excluded_users,
        networks,
    )
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:4], "big", signed=True)


def _pooled(alias: str) -> str:
    return (
        f"{alias}: a pooler stands between this alias and the server, so its sessions can't be told"
        " apart. Add an alias that leads straight to the server and name it with --database; or,"
        f" where the pooler runs in session mode, write CONN_GUARD['POOLER'] = {{{alias!r}:"
        " 'session'}."
    )
