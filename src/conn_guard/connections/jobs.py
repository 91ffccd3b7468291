"""The connections of one job of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from asgiref.sync import sync_to_async

from conn_guard.connections import closing
from conn_guard.connections.ownership import open_here
from conn_guard.connections.scopes import RequestScope


class JobScope(RequestScope):
    """Holds the connections of one job. At its end no connection of its thread stays open.

    A transaction that was open before the job is left alone: a test may run a worker in its own
    thread.
    """

    __slots__ = ()
    reason = "job"

    def __init__(self, name: Callable[[], str]) -> None:
        """Begin a job on this thread; *name* names it."""
        super().__init__(view=name, keep_persistent=False, close_found=True)
        self.look()

    def finish(self) -> None:
        """End the job, and close what the worker's own code opened on this thread meanwhile."""
        self.found = {*self.found, *open_here()}
        self.end()
        # A job that called asyncio.run() left its synchronous code to a thread of asgiref's, which
        # such a call reaches again.
        if self.is_open_elsewhere() and closing.running_loop() is None:
            asyncio.run(sync_to_async(self.end, thread_sensitive=True)())
        super().finish()
