"""Fixtures that run programs in the checkout and make environments from the pins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """Return a function that runs a program in the checkout and returns its output.

    A program that fails makes the test fail.
    """

    def run(*command: object) -> str:
        words = [str(part) for part in command]
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
        )
        offline = (
            "No matching distribution" in done.stderr or "Could not find a version" in done.stderr
        )
        if done.returncode and offline and os.environ.get("CONN_GUARD_REQUIRE") != "all":
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def fresh_python(run, tmp_path) -> Callable[..., Path]:
    """Return a function that makes an environment with *packages* alone, and returns its Python."""

    def make(*packages: object) -> Path:
        python = tmp_path / "fresh" / "bin" / "python"
        run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh")
        pins = ROOT / "constraints" / "pins.txt"
        run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "-c", pins, *packages)
        return python

    return make
