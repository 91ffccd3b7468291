"""The result of a run as values: exit code, outcomes, slots and report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from conn_guard.sessions.policy import Verdict
from conn_guard.sessions.session import Session


class Exit(IntEnum):
    """The command's exit codes; of several aliases the highest wins."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    PARTIAL = 3
    BLIND = 4
    UNREACHABLE = 5


class Status(Enum):
    """The end of a run that had no error."""

    DONE = "done"
    ALREADY_RUNNING = "already_running"
    BELOW_THRESHOLD = "below_threshold"


class RunError(Exception):
    """A run that can't go on; the text says in one line why, and what to type."""

    def __init__(self, exit_code: Exit, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Action(Enum):
    """The action on a session."""

    SIGNALLED = "signalled"
    WOULD_SIGNAL = "would_signal"
    SPARED = "spared"
    NOT_DUE = "not_due"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """A session in scope with the action on it; *reason* is None for a signal."""

    session: Session
    action: Action
    reason: str | None = None


@dataclass(frozen=True)
class Slots:
    """Used and usable slots of the fullest limit.

    Not *exact*: *used* is an upper bound, because hidden rows may use no slot.
    """

    used: int
    total: int
    exact: bool

    @property
    def percent(self) -> float:
        """Percent of the limit in use; 100 for a limit of 0."""
        return 100 * self.used / self.total if self.total > 0 else 100.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of one run for one alias.

    *gone* and *survivors* are None if the reaper could not look again after the signals.
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
    """Client sessions of the whole server by state: their number, and the longest seconds in it.

    None if the run ended before it listed the sessions.
    """
    hidden: int = 0
    seconds: float = 0.0
    interrupted_by: int | None = None
    """The number of the signal that stopped this run."""
    notes: Sequence[str] = ()
    """Lines for stderr."""
    mirror_of: str | None = None
    """The alias of the same server, database and role that was reaped instead."""
    is_skipped_standby: bool = False
    failure: str | None = None
    failed_with: Exit = Exit.DONE

    @property
    def is_left_out(self) -> bool:
        """Whether the run left this alias out: its output is a note alone."""
        return self.mirror_of is not None or self.is_skipped_standby

    @property
    def signalled(self) -> int:
        """The number of sessions that were signalled."""
        return self._count(Action.SIGNALLED)

    @property
    def would_signal(self) -> int:
        """The number of sessions that were due and were not signalled."""
        return self._count(Action.WOULD_SIGNAL)

    @property
    def failed(self) -> int:
        """The number of signals that the server refused, or that were lost."""
        return self._count(Action.FAILED)

    @property
    def spared(self) -> dict[str, int]:
        """The number of spared sessions by reason."""
        return dict(
            sorted(
                Counter(
                    each.reason or "" for each in self.outcomes if each.action is Action.SPARED
                ).items()
            )
        )

    @property
    def candidates(self) -> int:
        """The number of sessions that were due: signalled, failed and spared, but not our own."""
        spared = sum(count for reason, count in self.spared.items() if reason != Verdict.SELF.value)
        return self.signalled + self.would_signal + self.failed + spared

    @property
    def idle(self) -> int | None:
        """The number of idle sessions in scope, due or not; None if none were listed."""
        return None if self.census is None else len(self._idle)

    @property
    def longest_idle_seconds(self) -> float | None:
        """The seconds of the session that is idle for longest; None if none is."""
        return max((each.in_state_for.total_seconds() for each in self._idle), default=None)

    @property
    def exit_code(self) -> int:
        """The exit code of this alias."""
        if self.interrupted_by is not None:
            return 128 + self.interrupted_by
        if self.failure is not None:
            return self.failed_with
        return Exit.PARTIAL if self.failed or self.survivors else Exit.DONE

    @property
    def acted_on(self) -> list[Outcome]:
        """The outcomes other than spared and not due."""
        return [
            each for each in self.outcomes if each.action not in (Action.SPARED, Action.NOT_DUE)
        ]

    @property
    def _idle(self) -> list[Session]:
        return [each.session for each in self.outcomes if each.session.is_idle]

    def _count(self, action: Action) -> int:
        return sum(each.action is action for each in self.outcomes)
