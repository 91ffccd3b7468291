"""The wheel and the sdist hold the package alone, and leave a project's driver as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import conn_guard

ROOT = Path(__file__).resolve().parents[2]
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


def test_the_links_of_a_release_lead_to_the_repository(tmp_path):
    base = "https://forge.example/owner/conn-guard"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "CONN_GUARD_REPOSITORY": base},
        check=True,
        capture_output=True,
    )
    metadata = metadata_of(tmp_path)
    assert f"Project-URL: Source, {base}\n" in metadata
    assert f"]({base}/blob/HEAD/docs/README.md)" in metadata
    assert f"]({base}/raw/HEAD/docs/images/demo.svg)" in metadata
    links = re.findall(r"\]\(([^)]+)\)", metadata)
    assert all(re.match(r"https?://|#", link) for link in links), links


def test_the_wheel_beside_psycopg2_leaves_django_on_psycopg2(built, run, fresh_python):
    (wheel,) = built.glob("*.whl")
    host = fresh_python(wheel, "psycopg2-binary")
    assert run(host, "-I", "-c", SETTINGS) == "psycopg2 None"


@pytest.mark.parametrize(
    "old", [["pytest==6.2.5"], ["pytest==7.4.4", "pluggy==1.0.0"]], ids="".join
)
def test_a_pytest_too_old_for_the_plugin_runs_as_before(built, run, fresh_python, tmp_path, old):
    (wheel,) = built.glob("*.whl")
    host = fresh_python(wheel)
    run(sys.executable, "-m", "pip", "--python", host, "install", "-q", *old)
    (tmp_path / "test_one.py").write_text("def test_one():\n    assert True\n")
    assert "1 passed" in run(host, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path)
