"""The types that a user of the public functions gets, judged by mypy on a sample."""

from __future__ import annotations

import sys
from pathlib import Path

SAMPLE = Path(__file__).with_name("typed_sample.py")


def test_the_sample_passes_mypy(run, tmp_path):
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\nmypy_path = src\nfollow_imports = silent\n")
    cache = ["--config-file", config, "--cache-dir", tmp_path / "cache"]
    assert run(sys.executable, "-m", "mypy", *cache, SAMPLE).startswith("Success")
