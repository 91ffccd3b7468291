#!/usr/bin/env python3
"""The commands of a checkout, for Python 3.10 or newer with nothing else installed.

Each command makes the virtual environment that it needs, once. Python 3.6 to 3.9 can read this
file as far as the line that says which Python is needed.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

THIS_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(
        f"dev.py: Python 3.10 or newer is needed, and this is {THIS_PYTHON}; try python3.12 dev.py."
    )

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".venv-dev"
PINS = HERE / "constraints" / "pins.txt"


def fail(text: str) -> NoReturn:
    """End with one line on stderr."""
    sys.exit(f"dev.py: {text}")


def say(text: str) -> None:
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


def surroundings(**more: str | None) -> dict[str, str]:
    """Return the environment variables for a program; None removes a variable."""
    known = {
        **os.environ,
        "PIP_USER": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        **more,
    }
    # Programs take an empty HOME for the current folder.
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
    """Replace this process by a program, so that signals reach the program."""
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
    """Let only one dev.py at a time change an environment."""
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment(group: str, *, name: str = "main", project: bool = True) -> Path:
    """Return the Python of an environment with a dependency group of pyproject.toml.

    The environment is made anew when the project's dependencies, the pins or the place change.
    """
    folder = ENVIRONMENTS / name
    inside, stamp = folder / "bin" / "python", folder / "dev.json"
    # What follows the first [tool] table configures programs and installs nothing.
    declared = (HERE / "pyproject.toml").read_text().partition("\n[tool.")[0]
    parts = [declared, PINS.read_text(), str(folder), sys.executable, sys.version]
    base = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    with locked(name):
        state = json.loads(stamp.read_text()) if stamp.exists() and inside.exists() else {}
        if state.get("base") != base:
            say(f"making the environment .venv-dev/{name}; this is done once and takes a minute")
            make_environment(folder)
            state = {"base": base, "installed": []}
        if group not in state["installed"]:
            pip = [inside, "-m", "pip"]
            # pip knows dependency groups since 25.1; many Pythons bring an older one.
            install(pip, "-c", PINS, "pip")
            install(pip, "-c", PINS, "--group", group, *(["-e", "."] if project else []))
            state["installed"].append(group)
            stamp.write_text(json.dumps(state))
    return inside


def make_environment(folder: Path) -> None:
    """Make a virtual environment with pip, also with a Python that lacks ensurepip."""
    python = sys.executable
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


def install(installer: Sequence[object], *arguments: object) -> None:
    """Install packages; end with the last error of the installer where it fails."""
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
    """show the leak, end it and cure it on a real server; arguments go to `manage.py demo`"""
    become(environment("demo"), "example_project/manage.py", "demo", *arguments)


def test(arguments: list[str]) -> int:
    """run the tests; arguments go to pytest, and --cov before them measures branch coverage"""
    python = environment("test")
    if arguments[:1] != ["--cov"]:
        become(python, "-m", "pytest", *arguments)
    coverage = [python, "-m", "coverage"]
    run([*coverage, "erase"])
    code = run([*coverage, "run", "-m", "pytest", *arguments[1:]])
    run([*coverage, "combine", "--quiet"])
    # Only a run of all tests has to reach the share that pyproject.toml asks for.
    is_part = any(
        each.startswith("-k") or (HERE / each.partition("::")[0]).exists() for each in arguments[1:]
    )
    return run([*coverage, "report", *(["--fail-under=0"] if is_part else [])]) or code


def nox(arguments: list[str]) -> int:
    """run sessions of noxfile.py; arguments go to nox, and -l lists the sessions"""
    become(environment("nox", name="nox", project=False), "-m", "nox", *arguments)


COMMANDS = {each.__name__: each for each in (demo, test, nox)}


def main() -> int:
    """Run the command that was named."""
    name, arguments = (sys.argv[1:2] or ["help"])[0], sys.argv[2:]
    if name not in COMMANDS:
        print("usage: python3 dev.py COMMAND [ARGUMENT...]\n")
        print("\n".join(f"  {each:5} {command.__doc__}" for each, command in COMMANDS.items()))
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
