"""What is played: this room holds the acts, the traffic they are made of, and what each has to show."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import httpx

from demo.meter import Meter, Reading
from demo.stage import Stage

CONCURRENCY = 8
ENOUGH_ERRORS = 20
AT_MOST_REQUESTS, AT_MOST_SECONDS = 1000, 40
IDLE_FOR = "1s"

Say = Callable[[str], None]


@dataclass
class Act:
    number: str
    title: str
    guard: str
    """How much of conn_guard the server runs with: a value of EXAMPLE_GUARD."""
    expected: int | None = None
    """How many requests it will be, where that is known."""
    statuses: Counter[int] = field(default_factory=Counter)
    readings: list[Reading] = field(default_factory=list)
    peak: int | None = None
    left: int | None = None
    """Sessions of the application when nobody asks anything any more."""
    seconds: float = 0.0

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())

    @property
    def errors(self) -> int:
        return self.requests - self.statuses[200]


def programme() -> list[Act]:
    """Return the acts in the order in which they are played."""
    return [
        Act("1", "without conn_guard", "off"),
        Act("2", "idle_reaper, and then lists", "off"),
        Act("3a", "conn_guard in INSTALLED_APPS alone", "app"),
        Act("3b", "and its middleware too", "middleware"),
    ]


class Play:
    """The acts on their stage; who watches reads *acts*, *now_playing* and the meter while :meth:`run` runs."""

    def __init__(self, stage: Stage, meter: Meter, *, times: int, say: Say) -> None:
        self.stage, self.meter, self.times, self.say = stage, meter, times, say
        self.acts = programme()
        self.now_playing: Act | None = None
        self.began = 0
        self.reaper_said: list[tuple[str, str]] = []

    def run(self) -> list[str]:
        """Play until the end, or until an act fails to show what it has to; return what went wrong."""
        leak, reap, *guarded = self.acts
        with self.stage.serve(leak.guard) as server:
            self._begin(leak)
            asyncio.run(self._download(server, leak, ENOUGH_ERRORS))
            self._end(leak)
            if said := re.search(r"FATAL: .*", self.stage.log_of(leak.guard)):
                self.say(f"the server's log: {said[0]}")
            if faults := self._faults_of_the_leak(leak):
                return faults
            self._begin(reap)
            faults = self._reap("--dry-run") + self._reap()
            asyncio.run(self._list(server, reap))
            self._end(reap)
            if faults := faults + self._faults_of_the_rest(reap):
                return faults
        for act in guarded:
            act.expected = leak.requests * self.times
            with self.stage.serve(act.guard) as server:
                self._begin(act)
                asyncio.run(self._download(server, act, ENOUGH_ERRORS))
                self._end(act)
            faults += self._faults_of_the_rest(act)
        return faults

    def _begin(self, act: Act) -> None:
        self.meter.now()
        self.began = len(self.meter.readings) - 1
        self.now_playing = act
        self.say(f"act {act.number}: {act.title}")

    def _end(self, act: Act) -> None:
        act.left = self.meter.settled()
        self.watch()
        self.now_playing = None

    def watch(self) -> None:
        """Take over what the meter has read since the act began."""
        if act := self.now_playing:
            act.readings = self.meter.readings[self.began :]
            act.peak = max(reading.used for reading in act.readings)
            act.seconds = act.readings[-1].at - act.readings[0].at

    async def _download(self, server: httpx.Request, act: Act, enough_errors: int) -> None:
        """Ask for assets as nginx does: take the head, and leave the body, which the server can't send, to break off."""
        assets = await self._ids(server, "/api/assets")
        deadline = time.monotonic() + AT_MOST_SECONDS

        def paths() -> Iterator[str]:
            for number in count():
                if act.errors >= enough_errors or number >= (act.expected or AT_MOST_REQUESTS):
                    return
                if act.expected is None and time.monotonic() > deadline:
                    return
                yield f"/api/assets/{assets[number % len(assets)]}/download"

        await self._ask(server, act, paths())

    async def _list(self, server: httpx.Request, act: Act) -> None:
        """Ask for ordinary lists, which leak nothing: to see that the server answers."""
        await self._ask(server, act, iter(["/api/projects", "/api/tasks", "/api/assets", "/api/projects"] * 5))

    async def _ask(self, server: httpx.Request, act: Act, paths: Iterator[str]) -> None:
        async def ask_on(client: httpx.AsyncClient) -> None:
            for path in paths:
                status = 0
                try:
                    async with client.stream("GET", path) as answer:
                        status = answer.status_code
                        await answer.aread()
                except httpx.RemoteProtocolError:
                    pass
                except httpx.TransportError:
                    status = 0
                act.statuses[status] += 1

        async with _client(server) as client:
            await asyncio.gather(*(ask_on(client) for _ in range(CONCURRENCY)))

    async def _ids(self, server: httpx.Request, path: str) -> list[int]:
        async with _client(server) as client:
            answer = (await client.get(path)).raise_for_status()
        return [row["id"] for row in answer.json()["results"]]

    def _reap(self, *options: str) -> list[str]:
        words = ["idle_reaper", "--database", "operator", "--user", self.stage.role, "--idle-for", IDLE_FOR, *options]
        command = f"manage.py {' '.join(words)}"
        self.say(f"$ {command}")
        done = self.stage.manage(*words)
        self.reaper_said.append((command, done.stdout))
        for line in _shortened(done.stdout.splitlines()):
            self.say(line)
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [f"{command} ended with {done.returncode}: {why}"] if done.returncode else []

    def _faults_of_the_leak(self, act: Act) -> list[str]:
        faults = []
        if not act.statuses[500]:
            faults.append(f"Act 1 has to end in 500s, and {act.requests} requests brought none.")
        if (act.left or 0) < self.stage.slots // 2:
            faults.append(f"Act 1 has to leave the slots taken, and left {act.left} of {self.stage.slots}.")
        return faults

    def _faults_of_the_rest(self, act: Act) -> list[str]:
        faults = []
        if act.errors:
            faults.append(f"Act {act.number} has to be free of errors, and {act.errors} of {act.requests} requests failed.")
        if act.left:
            faults.append(f"Act {act.number} has to leave no session, and left {act.left} of {self.stage.slots}.")
        return faults


def _client(server: httpx.Request) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=30, trust_env=False)


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= 6:
        return lines
    return [*lines[:3], f"… {len(lines) - 4} more", lines[-1]]
