"""What a run of the reaper did, as values."""

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
