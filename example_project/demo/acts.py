"""The acts of the demo, and the results that each of them must have."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice

import httpx

from demo.meter import Meter, Reading
from demo.stage import Stage
from demo.traffic import ask, asset_paths

ENOUGH_ERRORS = 10
AT_MOST_REQUESTS, AT_MOST_SECONDS = 1000, 40
IDLE_FOR = "1s"
LISTS = ["/api/projects", "/api/tasks", "/api/assets", "/api/projects"] * 5

Say = Callable[[str], None]


@dataclass
class Act:
    number: str
    title: str
    guard: str
    """The parts of conn_guard that the server runs with: a value of EXAMPLE_GUARD."""
    expected: int | None = None
    """The number of requests, where it is known before the act."""
    statuses: Counter[int] = field(default_factory=Counter)
    readings: list[Reading] = field(default_factory=list)
    peak: int | None = None
    left: int | None = None
    """Sessions of the application that are still open after traffic stopped."""
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
    """The acts on their stage; a viewer reads *acts*, *now_playing* and the meter during run()."""

    def __init__(self, stage: Stage, meter: Meter, *, times: int, say: Say) -> None:
        self.stage, self.meter, self.times, self.say = stage, meter, times, say
        self.acts = programme()
        self.now_playing: Act | None = None
        self.began = 0
        self.reaper_said: list[tuple[str, str]] = []

    def run(self) -> list[str]:
        """Play all acts, or stop at the first that fails; return the faults."""
        leak, reap, *guarded = self.acts
        with self.stage.serve(leak.guard) as server:
            self._begin(leak)
            self._end(leak, self._leak(server, leak))
            if said := re.search(r"FATAL: .*", self.stage.log_of(leak.guard)):
                self.say(f"the server's log: {said[0]}")
            if faults := self._faults_of_the_leak(leak):
                return faults
            self._begin(reap)
            faults = self._reap("--dry-run") + self._reap()
            ask(server, iter(LISTS), reap.statuses)
            self._end(reap, self.meter.settled())
            if faults := faults + self._faults_of_the_rest(reap):
                return faults
        for act in guarded:
            act.expected = leak.requests * self.times
            with self.stage.serve(act.guard) as server:
                self._begin(act)
                ask(server, self._downloads(server, act), act.statuses)
                self._end(act, self.meter.settled())
            faults += self._faults_of_the_rest(act)
        return faults

    def watch(self) -> None:
        """Copy the readings since the act began from the meter."""
        if act := self.now_playing:
            act.readings = self.meter.readings[self.began :]
            act.peak = max(reading.used for reading in act.readings)
            act.seconds = act.readings[-1].at - act.readings[0].at

    def _begin(self, act: Act) -> None:
        self.meter.now()
        self.began = len(self.meter.readings) - 1
        self.now_playing = act
        self.say(f"act {act.number}: {act.title}")

    def _end(self, act: Act, left: int) -> None:
        act.left = left
        self.watch()
        self.now_playing = None

    def _leak(self, server: httpx.Request, act: Act) -> int:
        """Download until all slots are taken and stay taken; return how many stay.

        The garbage collector frees some connections while there is traffic, and keeps those that
        survived two collections. So several rounds may be needed until most slots stay taken.
        """
        paths = cycle(asset_paths(server))
        deadline = time.monotonic() + AT_MOST_SECONDS
        slots = self.stage.slots

        def round_of_downloads() -> Iterator[str]:
            enough = act.statuses[500] + ENOUGH_ERRORS
            for path in paths:
                is_full = act.statuses[500] >= enough and self.meter.readings[-1].used >= slots - 3
                if is_full or act.requests >= AT_MOST_REQUESTS or time.monotonic() > deadline:
                    return
                yield path

        while True:
            ask(server, round_of_downloads(), act.statuses)
            left = self.meter.settled()
            if (
                left >= slots * 3 // 4
                or act.requests >= AT_MOST_REQUESTS
                or time.monotonic() > deadline
            ):
                return left

    def _downloads(self, server: httpx.Request, act: Act) -> Iterator[str]:
        for path in islice(cycle(asset_paths(server)), act.expected):
            # So many errors are a failure already; the other requests would only take time.
            if act.errors >= ENOUGH_ERRORS:
                return
            yield path

    def _reap(self, *options: str) -> list[str]:
        words = [
            "idle_reaper",
            "--database",
            "operator",
            "--user",
            self.stage.role,
            "--idle-for",
            IDLE_FOR,
            *options,
        ]
        command = f"manage.py {' '.join(words)}"
        self.say(f"$ {command}")
        done = self.stage.manage(*words)
        lines = _shortened(done.stdout.splitlines())
        self.reaper_said.append((command, "\n".join(lines)))
        for line in lines:
            self.say(line)
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [f"{command} ended with {done.returncode}: {why}"] if done.returncode else []

    def _faults_of_the_leak(self, act: Act) -> list[str]:
        faults = []
        if not act.statuses[500]:
            faults.append(f"Act 1 has to end in 500s, and {act.requests} requests brought none.")
        if (act.left or 0) < self.stage.slots // 2:
            faults.append(
                f"Act 1 has to leave the slots taken, and left {act.left} of {self.stage.slots}."
            )
        return faults

    def _faults_of_the_rest(self, act: Act) -> list[str]:
        faults = []
        if act.errors:
            faults.append(
                f"Act {act.number} has to be free of errors, and {act.errors} of {act.requests}"
                " requests failed."
            )
        if act.left:
            faults.append(
                f"Act {act.number} has to leave no session, and left {act.left} of"
                f" {self.stage.slots}."
            )
        return faults


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= 8:
        return lines
    return [*lines[:5], f"… {len(lines) - 6} more", lines[-1]]
