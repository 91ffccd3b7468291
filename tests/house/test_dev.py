"""dev.py on poor machines: one line says what is wrong, and there is no traceback."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ABSENT = "raise ImportError('absent for this test')\n"
# As on Debian without python3-venv. The real venv asks for ensurepip in isolation, where no fake of
# it would be seen.
NO_ENSUREPIP = """
import runpy, sys
if "--without-pip" not in sys.argv:
    sys.exit("ensurepip is not available")
sys.path.remove(__file__.rpartition("/")[0])
runpy.run_module("venv", run_name="__main__")
"""
OLD = (
    "import runpy, sys; sys.version_info = (3, 9, 18, 'final', 0); sys.argv = ['dev.py', 'test'];"
    " runpy.run_path('dev.py')"
)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The files of a checkout that dev.py needs, below a path with a space."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("dev.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("constraints", "src", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def dev(checkout, tmp_path):
    """Return a function that runs dev.py without some modules and without a network.

    It returns the exit code and the last line of stderr.
    """
    fakes = tmp_path / "fakes"
    fakes.mkdir()

    def dev(
        *arguments: str,
        without: tuple[str, ...] = (),
        command: tuple[str, ...] = ("dev.py",),
        **more: str,
    ):
        for module in without:
            name, text = ("venv", NO_ENSUREPIP) if module == "ensurepip" else (module, ABSENT)
            (fakes / f"{name}.py").write_text(text)
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        offline = {
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PYTHONPATH": str(fakes),
            "HOME": "",
        }
        done = subprocess.run(
            [sys.executable, *command, *arguments],
            cwd=checkout,
            env={**keep, **offline, **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "Traceback" not in done.stderr
        return (
            done.returncode,
            done.stderr.replace("dev.py: making the environment", "").splitlines()[-1],
        )

    return dev


def test_an_old_python_can_read_it():
    ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 6))


def test_an_old_python_is_refused(dev):
    assert dev(command=("-c", OLD)) == (
        1,
        "dev.py: Python 3.10 or newer is needed, and this is 3.9; try python3.12 dev.py.",
    )


def test_no_network_is_told(dev):
    code, line = dev("test")
    assert code == 1
    assert line.startswith(
        "dev.py: the packages could not be installed; is there a network? The installer says:"
        " ERROR:"
    )


def test_a_python_without_venv_is_told(dev):
    code, line = dev("demo", without=("venv",))
    assert (code, line.partition(";")[0]) == (
        1,
        "dev.py: this Python cannot make a virtual environment",
    )


def test_a_python_without_ensurepip_lets_its_own_pip_step_in(dev):
    # It gets as far as the network, which is absent.
    code, line = dev("test", without=("ensurepip",))
    assert code == 1
    assert "is there a network?" in line


def test_a_python_without_any_installer_is_told(dev):
    code, line = dev("test", without=("ensurepip", "pip"), PATH="/nonexistent")
    assert (code, line.partition(",")[0]) == (
        1,
        "dev.py: this Python has neither ensurepip nor pip",
    )


def test_an_unknown_command_shows_the_usage():
    done = subprocess.run(
        [sys.executable, "dev.py", "tset"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert set(re.findall(r"^  (\w+)", done.stdout, re.MULTILINE)) == {"demo", "test", "nox"}


def test_a_run_that_executes_no_test_fails(tmp_path):
    nothing = ROOT / "tests" / "house" / "skipped_only.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(nothing)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "1 skipped" in done.stdout
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize(
    "path", sorted((ROOT / "constraints").iterdir()), ids=lambda path: path.name
)
def test_pins_hold_no_address(path):
    assert not re.search(r"://|@|--(extra-)?index|--find-links|\bfile:", path.read_text())


@pytest.mark.parametrize("page", ["example_project/README.md", "docs/monitoring/README.md"])
def test_the_installation_that_a_page_shows_resolves(run, page):
    (words,) = re.findall(r"^pip install (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    pins = ROOT / "constraints" / "pins.txt"
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "-c", pins]
    assert "conn-guard" in run(*pip, *shlex.split(words))
