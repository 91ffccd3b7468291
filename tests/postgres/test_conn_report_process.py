"""The report as a process: its exit code, its streams, its signals, and its page in a browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.own_server import own_server
from tests.support.polling import until
from tests.support.programs import end_all

NAUGHTY = "<script>x"


@pytest.fixture(scope="module")
def started(django_db_blocker):
    with django_db_blocker.unblock(), own_server(roles={"app": "LOGIN"}) as server:
        yield server


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(server, tmp_path) -> Iterator[Start]:
    """Return a function that starts the command on the server."""
    running: list[subprocess.Popen[str]] = []
    address = {"HOST": server.server.host, "PORT": str(server.server.port), "USER": "app"}
    changes = {**address, "NAME": "postgres", "PASSWORD": ""}
    (tmp_path / "own_settings.py").write_text(
        f"from tests.settings import *\nDATABASES['default'].update({changes!r})\n"
        "import datetime\nfrom conn_guard.sessions import login\n"
        "login.LOG_IN_FOR = datetime.timedelta(seconds=0.2)\n"
    )
    path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])

    def run(*arguments: str, **streams: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "django", "conn_report", *arguments],
            env={**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "own_settings"},
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        )
        running.append(process)
        return process

    yield run
    end_all(running)


def ended(process):
    stdout, stderr = process.communicate(timeout=45)
    return process.returncode, stdout, stderr


@contextmanager
def lines_of(process) -> Iterator[Callable[[], list[str]]]:
    """Give a function that returns the lines that *process* has written to stdout so far."""
    os.set_blocking(process.stdout.fileno(), False)
    seen: list[str] = []

    def lines() -> list[str]:
        seen.extend(process.stdout.readlines())
        return seen

    yield lines
    os.set_blocking(process.stdout.fileno(), True)


def test_a_report_from_the_command_line(server, start):
    server.session(application_name="shop:server")
    exit_code, stdout, stderr = ended(start())
    assert (exit_code, stderr) == (0, "")
    assert stdout.startswith("default app@127.0.0.1:")
    assert "shop:server" in stdout
    assert ended(start("-v", "0")) == (0, "", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_lacks_a_character_shows_it_escaped(server, start, monkeypatch, encoding):
    server.ask("SELECT 1")  # a session that is hidden from the role, so the slots are a bound
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    exit_code, stdout, stderr = ended(start())
    assert (exit_code, "\\u22642/37 slots" in stdout, stderr) == (0, True, "")
    exit_code, stdout, stderr = ended(start("--format", "html"))
    assert (exit_code, "&#8804; 2 of 37" in stdout, stderr) == (0, True, "")


def test_a_reader_that_leaves_early_is_no_fault(server, start):
    sessions = [server.session(application_name=f"shop{number}") for number in range(30)]
    assert sessions
    reader, writer = os.pipe()
    process = start("-v", "2", stdout=writer)
    os.close(writer)
    os.close(reader)
    assert ended(process) == (0, None, "")
    reader, writer = os.pipe()
    process = start("--fail-above", "1", stdout=writer)
    os.close(writer)
    os.close(reader)
    exit_code, _, stderr = ended(process)
    assert exit_code == 3
    assert stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [(), ("--watch", "0.1s"), ("--output", "/dev/full")])
def test_a_full_disk_is_one_line_and_exit_code_1(start, arguments):
    with open("/dev/full", "w") as full:
        exit_code, _, stderr = ended(start(*arguments, stdout=full))
    assert exit_code == 1
    assert stderr == "CommandError: The report can't be written: No space left on device\n"
    assert Path("/dev/full").is_char_device()


def test_a_device_is_written_to_and_not_replaced(start):
    assert ended(start("--output", "/dev/stdout", "--format", "json"))[0] == 0
    exit_code, _, _ = ended(start("--output", "/dev/null"))
    assert exit_code == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_watch_reports_until_it_is_stopped(start, signum):
    process = start("--watch", "0.1s", "--format", "json")
    with lines_of(process) as lines:
        until(lambda: len(lines()) > 2)
        assert {json.loads(each)["event"] for each in lines()[:2]} == {"report"}
        process.send_signal(signum)
    exit_code, _, stderr = ended(process)
    assert (exit_code, stderr) == (0, "")


def test_watch_waits_for_a_server_that_goes_away(server, start):
    process = start("--watch", "0.1s", "--format", "json")
    with lines_of(process) as lines:
        until(lambda: len(lines()) > 1)
        server.forget()
        server.server.halt()
        until(lambda: any('"error"' in each for each in lines()))
        server.server.start()
        count = len(lines())
        until(lambda: any('"report"' in each for each in lines()[count:]))
        process.send_signal(signal.SIGTERM)
    exit_code, _, stderr = ended(process)
    assert exit_code == 0
    assert "default: " in stderr
    assert "Traceback" not in stderr


def test_watch_rewrites_a_file(server, start, tmp_path):
    file = tmp_path / "page.html"
    process = start("--watch", "0.1s", "--format", "html", "--output", str(file))
    until(file.exists)
    first = file.stat().st_ino
    until(lambda: file.stat().st_ino != first)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "", "")
    assert file.read_text().endswith("</html>\n")


def test_watch_ends_when_its_reader_leaves(start):
    process = start("--watch", "0.1s")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert ended(process) == (0, None, "")


def test_watch_ends_at_once_where_it_was_called_wrongly(server, start, tmp_path):
    exit_code, stdout, stderr = ended(start("--watch", "--database", "nope"))
    assert (exit_code, stdout, stderr.count("\n")) == (2, "", 1)


def test_a_report_that_is_stopped_ends_with_the_signals_number(server, start):
    process = start("--over", "1h")
    is_there = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'conn_guard:report'"
    until(lambda: server.ask(is_there))
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (143, "", "CommandError: Stopped by SIGTERM.\n")
    until(lambda: not server.ask(is_there))


@pytest.fixture
def browser(needs_program, tmp_path):
    """Return a function that opens a page in Chromium, and returns what the page became."""
    chromium = needs_program("chromium")

    def show(page: Path, *options: str) -> str:
        command = [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            *options,
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return show


@pytest.fixture
def page(server, start, tmp_path):
    """A page about sessions, one of which has a name that is no name."""
    sessions = [server.session(application_name=f"shop:{number}:view") for number in range(4)]
    sessions += [server.session(application_name=NAUGHTY) for _ in range(3)]
    file = tmp_path / "report.html"
    assert ended(start("--format", "html", "--output", str(file)))[0] == 0
    return file


def test_a_browser_shows_the_page_and_loads_nothing_else(page, browser, tmp_path):
    log = tmp_path / "net.json"
    shown = browser(page, "--dump-dom", f"--log-net-log={log}")
    assert "&lt;script&gt;x" in shown
    assert "<script" not in shown
    events = log.read_text()
    # Chromium's own services ask on their own; the page has no address to ask for.
    asked = {line for line in events.split('"') if line.startswith(("http://", "https://"))}
    assert not [each for each in asked if "report.html" in each or "127.0.0.1" in each]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", ["--window-size=1100,900"]),
        ("dark", ["--window-size=1100,900", "--blink-settings=preferredColorScheme=0"]),
        ("phone", ["--window-size=420,900"]),
    ],
)
def test_a_browser_draws_the_page_in_each_look(page, browser, tmp_path, name, options):
    picture = tmp_path / f"{name}.png"
    browser(page, *options, f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")


MEASURE = """
<script>addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument;
  document.title = page.documentElement.scrollWidth;
});</script><iframe style="border:0;width:420px;height:900px" srcdoc="%s"></iframe>
"""


def test_a_phone_needs_no_sideways_scrolling(page, browser, tmp_path):
    from html import escape

    frame = tmp_path / "frame.html"
    frame.write_text("<!DOCTYPE html><title></title>" + MEASURE % escape(page.read_text()))
    shown = browser(frame, "--dump-dom", "--window-size=800,900", "--virtual-time-budget=5000")
    title = shown.split("<title>")[1].split("</title>")[0]
    assert 0 < int(title) <= 420


def test_a_browser_prints_the_page(page, browser, tmp_path):
    printed = tmp_path / "report.pdf"
    browser(page, f"--print-to-pdf={printed}")
    assert printed.read_bytes().startswith(b"%PDF")
