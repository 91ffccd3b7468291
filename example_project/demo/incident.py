"""An incident as Prometheus sees it: the leak, the reaper, the cure, and the alerts meanwhile."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from demo.meter import Meter
from demo.prometheus import Prometheus, find_programs, run_prometheus
from demo.stage import PROJECT, Stage, leashed, set_stage
from demo.traffic import CONCURRENCY, ask, asset_paths

SLOTS_SHORT = "ConnGuardSlotsShort"
NEVER_CLOSED = "ConnGuardResponsesNeverClosed"
# Five and ten minutes, in a run that has a second for each minute.
EVERY, IDLE_FOR = "5s", "10s"
LEAK_UP_TO = 0.9
"""The share of the slots above which the clients of the leak wait."""
TRICKLE_SECONDS = 0.5
AT_MOST_SECONDS = 90


@dataclass(frozen=True)
class Event:
    """An event of the timeline: its Unix time, and the sessions of the application then."""

    at: float
    used: int
    text: str


class IncidentError(Exception):
    """An alert did not fire or resolve in time, or the reaper ended."""


class Incident:
    """The incident on its stage; *events* is its timeline."""

    def __init__(
        self, stage: Stage, meter: Meter, prometheus: Prometheus, say: Callable[[Event], None]
    ) -> None:
        self.stage, self.meter, self.prometheus, self.say = stage, meter, prometheus, say
        self.events: list[Event] = []
        self.leak: Counter[int] = Counter()
        self.cure: Counter[int] = Counter()
        """The answers by status, with the leak and with its cure."""
        self._firing: set[str] = set()
        stage.environment["EXAMPLE_METRICS"] = "true"

    def run(self) -> None:
        """Play the incident. Raises IncidentError."""
        with ExitStack() as stack:
            looking = stack.enter_context(ExitStack())
            looking.enter_context(self._reaper("--dry-run"))
            self._until("node exporter to show the slots", self._knows_slots)
            with self.stage.serve("off") as server:
                self._note("the leak begins: downloads without conn_guard")
                traffic = self._downloads(server, self.leak)
                self._until(f"{SLOTS_SHORT} to fire", self._fires(SLOTS_SHORT), traffic)
                looking.close()
                stack.enter_context(self._reaper("--idle-for", IDLE_FOR))
                self._note(f"first aid: idle_reaper every {EVERY}; fewer downloads")
                trickle = self._trickle(server)
                self._until(f"{SLOTS_SHORT} to resolve", self._rests(SLOTS_SHORT), trickle)
            with self.stage.serve("middleware") as server:
                self.prometheus.scrape_web(str(server.url))
                self._until("Prometheus to scrape the web server", self._knows_web)
                self._note("the cure: conn_guard's app and middleware, and as many downloads")
                traffic = self._downloads(server, self.cure)
                self._until(f"{NEVER_CLOSED} to fire", self._has_cured, traffic)
                self._note(f"traffic ends after {self.cure.total()} downloads")
                self._until(f"{NEVER_CLOSED} to resolve", self._rests(NEVER_CLOSED))

    def _has_cured(self) -> bool:
        return NEVER_CLOSED in self._firing and self.cure.total() >= self.leak.total()

    def _fires(self, alert: str) -> Callable[[], bool]:
        return lambda: alert in self._firing

    def _rests(self, alert: str) -> Callable[[], bool]:
        return lambda: alert not in self._firing

    def _knows_slots(self) -> bool:
        return bool(self.prometheus.query("conn_guard_server_slots_used"))

    def _knows_web(self) -> bool:
        return bool(self.prometheus.query("conn_guard_connections_open"))

    def _downloads(self, server: httpx.Request, statuses: Counter[int]) -> Callable[[], None]:
        paths = cycle(asset_paths(server))

        def download() -> None:
            if self.meter.now() < LEAK_UP_TO * self.stage.slots:
                ask(server, islice(paths, 2 * CONCURRENCY), statuses)

        return download

    def _trickle(self, server: httpx.Request) -> Callable[[], None]:
        paths = cycle(asset_paths(server))

        def download() -> None:
            ask(server, islice(paths, 1), self.leak)
            time.sleep(TRICKLE_SECONDS)

        return download

    def _until(
        self, what: str, is_so: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Call *meanwhile* until *is_so*, and note the alerts that fire and resolve."""
        deadline = time.monotonic() + AT_MOST_SECONDS
        while True:
            firing = self.prometheus.firing()
            for alert in sorted(firing ^ self._firing):
                self._note(f"{alert} {'fires' if alert in firing else 'resolves'}")
            self._firing = firing
            if is_so():
                return
            if time.monotonic() > deadline:
                raise IncidentError(f"Waited {AT_MOST_SECONDS} s for {what}.")
            meanwhile()
            time.sleep(0.1)

    def _note(self, text: str) -> None:
        event = Event(time.time(), self.meter.readings[-1].used, text)
        self.events.append(event)
        self.say(event)

    @contextmanager
    def _reaper(self, *options: str) -> Iterator[None]:
        """Run the reaper with its metrics in the folder of node exporter."""
        metrics = self.prometheus.textfiles / "idle_reaper.prom"
        who = ["--database", "operator", "--user", self.stage.role]
        command = [sys.executable, "manage.py", "idle_reaper", "-v", "0", *who, *options]
        command += ["--every", EVERY, "--metrics-file", str(metrics)]
        log = self.prometheus.folder / "idle_reaper.log"
        with leashed(command, log, cwd=PROJECT, env=self.stage.environment) as process:
            yield
            if process.poll() is not None:
                raise IncidentError(f"idle_reaper ended: {log.read_text().strip()}")


@contextmanager
def staged_incident(say: Callable[[Event], None]) -> Iterator[Incident]:
    """Give an incident that is ready to run; *say* gets each of its events."""
    find_programs()  # before the other preparations take their time
    with (
        set_stage() as stage,
        TemporaryDirectory(prefix="conn_guard-monitor-") as folder,
        run_prometheus(Path(folder)) as prometheus,
        Meter(stage) as meter,
    ):
        yield Incident(stage, meter, prometheus, say)
