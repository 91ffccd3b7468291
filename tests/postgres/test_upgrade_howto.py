"""The commands of the page on upgrades run in the example."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres.howto import lines

EXAMPLE = Path(__file__).parents[2] / "example_project"
PAGE = "upgrade"


@pytest.mark.parametrize("line", lines(PAGE))
def test_the_commands_of_the_page_run(server, line):
    pytest.importorskip("environ")
    words = shlex.split(line)
    assert words[0] in ("python", "conn-guard")
    command = words[1:] if words[0] == "python" else ["-m", "conn_guard", *words[1:]]
    address = f"postgres://app@{server.server.host}:{server.server.port}/postgres"
    done = subprocess.run(
        [sys.executable, *command],
        cwd=EXAMPLE,
        env={
            **os.environ,
            "DATABASE_URL": address,
            "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_other_commands_install_the_package():
    assert [shlex.split(line)[:2] for line in lines(PAGE, note="install")] == [["pip", "install"]]
    assert [shlex.split(line)[2].partition("==")[0] for line in lines(PAGE, note="back")] == [
        "conn-guard"
    ]
