"""The process that measures one table; ``python -m benchmarks`` reads its lines of JSON."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from importlib.metadata import PackageNotFoundError

from benchmarks.peers import PeerError, versions
from benchmarks.tables import TABLES
from benchmarks.tables.table import reason


def main() -> None:
    # Servers and sessions end with their blocks, also when the time of the table is over.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    table, small = TABLES[sys.argv[1]], "--small" in sys.argv
    found: dict[str, str] = {}
    for package in ("", *table.packages):
        try:
            found.update(versions(*filter(None, [package])))
        except (PeerError, PackageNotFoundError) as error:
            found[package] = reason(error)
    _tell({"versions": found})
    for row in table.rows(small):
        _tell({"row": row, "cells": {"failed": f"not measured within {table.within:g} s"}})
    reached: set[str] = set()
    try:
        for row, cells in table.measure(small):
            reached.add(row)
            _tell({"row": row, "cells": cells})
    except Exception as error:  # noqa: BLE001 - the other tables are measured
        traceback.print_exc()
        for row in table.rows(small):
            if row not in reached:
                _tell({"row": row, "cells": {"failed": reason(error)}})


def _tell(line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
