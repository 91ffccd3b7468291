"""The wheel and the sdist hold what is tested, and leave a project's driver as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import conn_guard
from tools.metadata import addresses

ROOT = Path(__file__).resolve().parents[2]
BASE = "https://forge.example/owner/conn-guard"
SETTINGS = """
from importlib.util import find_spec
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["conn_guard"],
    MIDDLEWARE=["conn_guard.middleware.ConnectionGuardMiddleware"],
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "none"}},
)
django.setup()
from django.core.checks import run_checks
from django.db import connection
run_checks()
print(connection.Database.__name__, find_spec("psycopg"))
"""


@pytest.fixture(scope="module")
def built(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--directory", folder)
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A folder with the wheel as a release makes it."""
    folder = tmp_path_factory.mktemp("released")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        env={**os.environ, "CONN_GUARD_REPOSITORY": BASE},
        check=True,
        capture_output=True,
    )
    return folder


@contextmanager
def index(folder: Path, *files: Path) -> Iterator[str]:
    """Serve *files* as a simple package index, and give its address."""
    project = folder / "simple" / "conn-guard"
    project.mkdir(parents=True)
    for file in files:
        (project / file.name).write_bytes(file.read_bytes())
    names = "".join(f'<a href="{file.name}">{file.name}</a>' for file in files)
    (project / "index.html").write_text(f"<!DOCTYPE html><title>conn-guard</title>{names}")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/simple/"
        finally:
            server.shutdown()


def metadata_of(folder: Path) -> str:
    (wheel,) = folder.glob("*.whl")
    (name,) = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".dist-info/METADATA")]
    return zipfile.ZipFile(wheel).read(name).decode()


def test_the_wheel_holds_the_package_alone(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "conn_guard",
        f"conn_guard-{conn_guard.__version__}.dist-info",
    }
    assert {"conn_guard/py.typed", "conn_guard/management/commands/idle_reaper.py"} <= set(names)


def test_the_wheel_holds_the_files_of_the_admin_page(built):
    (wheel,) = built.glob("*.whl")
    source = ROOT / "src"
    files = {
        str(each.relative_to(source))
        for suffix in ("html", "css", "js")
        for each in source.glob(f"conn_guard/contrib/admin/**/*.{suffix}")
    }
    assert len(files) >= 3
    assert files <= set(zipfile.ZipFile(wheel).namelist())


def test_the_sdist_holds_the_package_and_its_papers_alone(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        parts = [name.split("/")[1] for name in archive.getnames() if "/" in name]
    assert set(parts) <= {
        "src",
        "tools",
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "PKG-INFO",
        ".gitignore",
    }
    assert "src" in parts


def test_the_index_would_take_wheel_and_sdist(built, run):
    pytest.importorskip("twine", reason="the session wheel has twine")
    said = run(sys.executable, "-m", "twine", "check", "--strict", *sorted(built.iterdir()))
    assert said.count("PASSED") == 2


def test_wheel_and_sdist_hold_the_tested_files_unchanged(built, run, tmp_path):
    (wheel,) = built.glob("*.whl")
    (sdist,) = built.glob("*.tar.gz")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "src")
    tested = {name.removeprefix("src/"): (ROOT / name).read_bytes() for name in listed.split("\n")}
    archive = zipfile.ZipFile(wheel)
    packed = {name: archive.read(name) for name in archive.namelist() if "dist-info" not in name}
    assert packed == tested
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "--directory", str(tmp_path)],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    rebuilt = zipfile.ZipFile(tmp_path / wheel.name)
    assert {name: rebuilt.read(name) for name in rebuilt.namelist()} == {
        name: archive.read(name) for name in archive.namelist()
    }


def test_django_is_the_only_hard_dependency(built):
    needs = [
        line
        for line in metadata_of(built).splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert needs == ["Requires-Dist: django>=4.2"]


def test_without_an_address_the_wheel_names_none(built):
    assert "Project-URL" not in metadata_of(built)
    assert "](docs/README.md)" in metadata_of(built)


def test_the_links_of_a_release_lead_to_the_repository(released):
    metadata = metadata_of(released)
    assert f"Project-URL: Source, {BASE}\n" in metadata
    assert f"]({BASE}/blob/HEAD/docs/README.md)" in metadata
    assert f"]({BASE}/raw/HEAD/docs/images/demo.svg)" in metadata
    links = re.findall(r"\]\(([^)]+)\)", metadata)
    assert all(re.match(r"https?://|#", link) for link in links), links


def test_a_published_site_is_the_address_of_the_documentation(monkeypatch):
    assert addresses(BASE)["Documentation"] == f"{BASE}/blob/HEAD/docs/README.md"
    monkeypatch.setenv("CONN_GUARD_DOCS", "https://docs.example/stable")
    assert addresses(BASE)["Documentation"] == "https://docs.example/stable"


def test_a_release_from_an_index_leaves_django_on_psycopg2(released, run, fresh_python, tmp_path):
    (wheel,) = released.glob("*.whl")
    host = fresh_python("django", "psycopg2-binary")
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(host), "install"]
    with index(tmp_path / "index", wheel) as address:
        subprocess.run(
            [*pip, "--no-cache-dir", "--index-url", address, "conn-guard"],
            env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
            check=True,
            capture_output=True,
        )
    assert run(host, "-I", "-c", SETTINGS) == "psycopg2 None"
    text = run(host.parent / "conn-guard", "check", "E101")
    assert text.endswith(f"Page: {BASE}/blob/HEAD/docs/reference/checks.md#e101")


@pytest.mark.parametrize(
    "old", [["pytest==6.2.5"], ["pytest==7.4.4", "pluggy==1.0.0"]], ids="".join
)
def test_a_pytest_too_old_for_the_plugin_runs_as_before(built, run, fresh_python, tmp_path, old):
    (wheel,) = built.glob("*.whl")
    host = fresh_python(wheel)
    run(sys.executable, "-m", "pip", "--python", host, "install", "-q", *old)
    (tmp_path / "test_one.py").write_text("def test_one():\n    assert True\n")
    assert "1 passed" in run(host, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path)
