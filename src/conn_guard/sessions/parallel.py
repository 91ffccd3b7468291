"""Works with the clients of several servers side by side, in threads that end with the work."""

from __future__ import annotations

import heapq
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from datetime import timedelta
from typing import Generic, TypeVar

from conn_guard.sessions.login import address_key
from conn_guard.sessions.server import ServerClient
from conn_guard.sessions.stop import Stop

MOST_JOBS = 32
"""The number of threads unless another is asked for; each waits for its server most of the time."""

C = TypeVar("C", bound=ServerClient)
T = TypeVar("T")


def side_by_side(
    clients: Sequence[C],
    work: Callable[[C], T],
    *,
    stop: Stop,
    jobs: int | None = None,
    spread: timedelta = timedelta(0),
) -> Iterator[T]:
    """Yield the result of *work* for each of *clients*, in their order.

    *jobs* threads share the clients; a client that can't log in yet waits behind the others. One
    client, or one job, needs no thread: then the clients follow one another. A client begins up to
    *spread* later, by its alias. After *stop* no other client begins.
    """
    jobs = min(jobs or MOST_JOBS, len(clients))
    if jobs < 2:
        for client in clients:
            if stop.signum is not None:
                return
            yield work(client)
        return
    queue = _Queue(clients, work, stop, spread)
    # Daemons: a second SIGINT must end the process while a server answers no more.
    threads = [
        threading.Thread(target=queue.serve, name=f"conn_guard-{number}", daemon=True)
        for number in range(jobs)
    ]
    for thread in threads:
        thread.start()
    try:
        for result in queue.results:
            try:
                yield result.result()
            except CancelledError:
                continue
    except KeyboardInterrupt:
        threads.clear()
        raise
    finally:
        queue.leave()
        for thread in threads:
            thread.join()


class _Queue(Generic[C, T]):
    """The clients that wait for a thread, by the time at which each may begin or try again."""

    def __init__(
        self, clients: Sequence[C], work: Callable[[C], T], stop: Stop, spread: timedelta
    ) -> None:
        self._clients = clients
        self._work = work
        self._stop = stop
        self._is_left = False
        self._lock = threading.Lock()
        self._tries: Counter[int] = Counter()
        self.results: list[Future[T]] = [Future() for _ in clients]
        now = time.monotonic()
        self._due = [
            (now + _share(client.alias) * spread.total_seconds(), index)
            for index, client in enumerate(clients)
        ]
        heapq.heapify(self._due)
        # Of aliases with the same address the first one comes first, so that each run reports a
        # place by the same alias.
        firsts: dict[str, int] = {}
        self._first = [
            firsts.setdefault(address_key(client.alias), index)
            for index, client in enumerate(clients)
        ]

    def leave(self) -> None:
        """Let no other client begin."""
        self._is_left = True

    def serve(self) -> None:
        """Work with one client after the other until none waits."""
        while (index := self._next()) is not None:
            client = self._clients[index]
            try:
                if client.try_log_in():
                    self.results[index].set_result(self._work(client))
                else:
                    self._try_later(index)
            except BaseException as error:  # noqa: BLE001 - the caller of side_by_side gets it
                self.results[index].set_exception(error)

    def _next(self) -> int | None:
        while True:
            with self._lock:
                if not self._due:
                    return None
                at, index = self._due[0]
                pause_s = at - time.monotonic()
                is_stopped = self._stop.signum is not None
                if self._is_left or is_stopped or pause_s <= 0:
                    heapq.heappop(self._due)
                    # After a signal, a client that was tried before still reports its failure.
                    if self._is_left or (is_stopped and not self._tries[index]):
                        self.results[index].cancel()
                        continue
                    if self._follows(index):
                        heapq.heappush(self._due, (time.monotonic() + 0.02, index))
                        continue
                    return index
            time.sleep(min(pause_s, 0.1))

    def _follows(self, index: int) -> bool:
        """Return whether an alias of the same address has to come before the client *index*."""
        first = self._first[index]
        return first != index and not (self._tries[first] or self.results[first].done())

    def _try_later(self, index: int) -> None:
        with self._lock:
            self._tries[index] += 1
            # Longer from try to try: a hundred dead servers must not take this machine's time.
            pause_s = random.uniform(0.1, 0.5) * min(self._tries[index], 5)  # noqa: S311 - jitter
            heapq.heappush(self._due, (time.monotonic() + pause_s, index))


def _share(alias: str) -> float:
    """Return a number from 0 to 1 that is the same for *alias* in every process."""
    return zlib.crc32(alias.encode()) / 2**32
