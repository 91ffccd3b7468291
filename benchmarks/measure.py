"""The process that measures one table; ``python -m benchmarks`` reads its lines of JSON."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from importlib.metadata import PackageNotFoundError

from benchmarks.peers import PeerError, versions
from benchmarks.tables import TABLES
from benchmarks.tables.table import Size, reason


def main() -> None:
    # Servers and sessions end with their blocks, also when the time of the table is over.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    table, size = TABLES[sys.argv[1]], Size(sys.argv[2])
    found: dict[str, str] = {}
    for package in ("", *table.packages):
        try:
            found.update(versions(*filter(None, [package])))
        except (PeerError, PackageNotFoundError):
            found[package] = "absent"
    _tell({"versions": found})
    reached: set[str] = set()
    try:
        for row, cells in table.measure(size):
            reached.add(row)
            _tell({"row": row, "cells": cells})
    except Exception as error:  # noqa: BLE001 - the other tables are measured
        traceback.print_exc()
        for row in table.rows(size):
            if row not in reached:
                _tell({"row": row, "cells": {"failed": reason(error)}})


def _tell(line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
