"""The options of a probe as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum


class Mode(Enum):
    """How the client takes an answer."""

    NORMAL = "normal"
    """It reads the whole answer."""
    DISCONNECT = "disconnect"
    """It closes the connection when it has the head."""
    HEAD = "head"
    """It sends HEAD."""
    SLOW = "slow"
    """It reads 64 KiB a second."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a probe puts load on each URL, and from how many sessions on it says ``leaks``."""

    requests: int = 200
    """The requests of one round; there are two rounds."""
    concurrency: int = 20
    modes: tuple[Mode, ...] = (Mode.NORMAL,)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cookies: Mapping[str, str] = field(default_factory=dict, repr=False)
    data: bytes | None = field(default=None, repr=False)
    """The body of each request, other than GET and HEAD."""
    timeout: timedelta = timedelta(seconds=30)
    """The longest time that one request takes."""
    settle: timedelta = timedelta(seconds=5)
    """The rest after each round."""
    expect: tuple[int, ...] = ()
    """Statuses that are right, other than those from 200 to 299 and 304."""
    applications: tuple[str, ...] = ()
    """Globs for the application_name of the server's sessions; empty: any name."""
    min_leaked: int = 2
    min_share: float = 1.0
    """Percent of a round's requests."""
    own_host: bool = False
    """Hosts other than this machine may be probed."""

    @property
    def least_leaked(self) -> float:
        """The number of leaked sessions from which on the verdict is ``leaks``."""
        return max(self.min_leaked, self.min_share / 100 * self.requests)
