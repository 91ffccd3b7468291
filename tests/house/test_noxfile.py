"""The sessions of noxfile.py: the cells of the matrix, and the second look at what failed."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

CommandFailed = pytest.importorskip("nox.command").CommandFailed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def noxfile(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("noxfile")


class Session:
    """The part of nox's session that look_twice uses; each run ends with the next of *codes*."""

    def __init__(self, *codes: int) -> None:
        self.codes = [*codes]
        self.commands: list[tuple[str, ...]] = []

    def run(self, *command: str, env: dict[str, str | None]) -> None:
        self.commands.append(command)
        if code := self.codes.pop(0):
            raise CommandFailed(return_code=code)


def test_nox_lists_the_sessions_and_the_cells():
    command = [sys.executable, "-m", "nox", "-f", str(ROOT / "noxfile.py"), "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = {line.split(" ")[1] for line in done.stdout.splitlines() if line[:2] in ("* ", "- ")}
    assert {"lint", "types", "wheel", "leaks", "docs", "pictures", "bench", "pin"} <= names
    assert "matrix(py3.10-django4.2-psycopg2-pg14)" in names


def test_the_quick_matrix_has_a_new_django_with_psycopg2_for_the_reaper(noxfile):
    quick = noxfile.quick_cells()
    (paths,) = [quick[cell] for cell in quick if (cell.django, cell.driver) == ("5.2", "psycopg2")]
    assert "tests/postgres/test_reaper.py" in paths
    assert "tests/postgres/test_server_checks.py" in paths


def test_the_classifiers_are_the_matrix(noxfile):
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def named(prefix: str) -> list[str]:
        found = (each.removeprefix(prefix) for each in project["classifiers"])
        return [each for each in found if re.fullmatch(r"\d\.\d+", each)]

    assert named("Programming Language :: Python :: ") == [*noxfile.PYTHONS]
    assert named("Framework :: Django :: ") == [*noxfile.DJANGOS]
    assert project["requires-python"] == f">={next(iter(noxfile.PYTHONS))}"
    assert project["dependencies"] == [f"Django>={next(iter(noxfile.DJANGOS))}"]


def test_a_cell_is_listed_once(noxfile):
    cells = [*noxfile.all_cells()]
    assert len(cells) == len(set(cells))


@pytest.mark.parametrize(
    ("codes", "fails"), [((0,), False), ((1, 0), False), ((1, 1), True), ((5,), True)]
)
def test_tests_that_failed_run_once_more_and_alone(noxfile, codes, fails):
    session = Session(*codes)
    with pytest.raises(CommandFailed) if fails else nullcontext():
        noxfile.look_twice(session, ["pytest", "-n", "2"], {})
    assert session.codes == []
    assert all(command[-3:] == ("--last-failed", "-n", "0") for command in session.commands[1:])
