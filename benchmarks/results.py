"""The results of the tables: they are kept as JSON, and the page is written from them."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

from benchmarks.figures import Cells

RESULTS = Path(__file__).with_name("results.json")


@dataclass
class Result:
    """One table as it was measured."""

    command: str
    small: bool
    date: str
    machine: dict[str, str]
    load_before: float
    """The machine's load average of a minute, before the table."""
    seconds: float = 0
    versions: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Cells] = field(default_factory=dict)


def begin(command: str, *, small: bool) -> Result:
    """Return a result without rows, for a run on this machine today."""
    today = date.today().isoformat()  # noqa: DTZ011 - the reader's own day
    return Result(command, small, today, _machine(), round(os.getloadavg()[0], 1))


def _machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": str(os.cpu_count()),
        "RAM": f"{memory / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "processor": platform.machine(),
    }


def read(path: Path) -> dict[str, Result]:
    """Return the results in *path*, none if it doesn't exist."""
    if not path.exists():
        return {}
    return {name: Result(**each) for name, each in json.loads(path.read_text()).items()}


def write(path: Path, results: dict[str, Result]) -> None:
    """Write *results* in one move, so that a run that is killed leaves the file whole."""
    partial = path.with_suffix(".part")
    texts = {name: asdict(each) for name, each in results.items()}
    partial.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
