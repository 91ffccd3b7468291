"""The meter, which counts the application's sessions on the server."""

import threading
import time
from dataclasses import dataclass

from demo.stage import Stage, connect

EVERY_SECONDS = 0.05
SETTLES_WITHIN_SECONDS = 3.0

# The meter's own session and the reaper's belong to the operator's role and so are not counted.
USED = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"


@dataclass(frozen=True)
class Reading:
    at: float
    """Seconds on this process's monotonic clock."""
    used: int


class Meter(threading.Thread):
    """A thread with a session of its own that adds to *readings* twenty times a second."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(name="meter", daemon=True)
        self.stage = stage
        self.readings: list[Reading] = []
        self._stopped = threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> "Meter":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        connection = connect(self.stage.operator_url, "example:meter")
        try:
            while not self._stopped.wait(EVERY_SECONDS):
                with connection.cursor() as cursor:
                    cursor.execute(USED, [self.stage.role])
                    reading = Reading(time.monotonic(), cursor.fetchone()[0])
                self.readings.append(reading)
        except Exception as error:  # noqa: BLE001  (raised again on the thread that asks)
            self._failure = error
        finally:
            connection.close()

    def now(self) -> int:
        """Return how many slots are taken, by a reading that began after this call."""
        known = len(self.readings)
        # One reading may be under way.
        while len(self.readings) < known + 2:
            if self._failure:
                raise self._failure
            time.sleep(EVERY_SECONDS / 2)
        return self.readings[-1].used

    def settled(self) -> int:
        """Return how many slots are still taken after traffic stopped."""
        deadline = time.monotonic() + SETTLES_WITHIN_SECONDS
        while (used := self.now()) and time.monotonic() < deadline:
            pass
        return used
