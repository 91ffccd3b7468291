"""A request to stop, which a signal handler may make, and a sleep that ends with it."""

from __future__ import annotations

import time


class Stop:
    """Whether the run was asked to stop; *signum* is the number of the signal, or None."""

    signum: int | None = None

    def sleep(self, seconds: float) -> None:
        """Sleep for *seconds*, or until asked to stop."""
        # In slices: an Event that a signal handler sets can deadlock with the wait it interrupts.
        until = time.monotonic() + seconds
        while self.signum is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
