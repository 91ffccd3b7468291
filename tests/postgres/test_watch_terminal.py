"""``conn_report --watch`` in a real terminal, and where there is none to fill."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.support import polling
from tests.support.own_server import OwnServer
from tests.support.programs import require

pytestmark = pytest.mark.django_db(databases=[])

ADDRESS = r"default app@\S+ +PostgreSQL"
WITHOUT_TEXTUAL = "import sys; sys.modules['textual'] = None; from conn_guard.__main__ import main"


def command(server: OwnServer, *arguments: str) -> list[str]:
    """Return the words that watch *server*, with a login that fails at once."""
    url = f"postgresql://app@{server.server.host}:{server.server.port}/postgres"
    code = "from conn_guard.__main__ import main; main()"
    return [sys.executable, "-c", code, "report", "--watch", "0.2s", "--dsn", url, *arguments]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(each for each in sys.path if each)
    known = {key: value for key, value in os.environ.items() if not key.startswith("TMUX")}
    return {**known, "PYTHONPATH": path, "TERM": "xterm-256color", **more}


class Terminal:
    """A terminal of 80 columns and 24 lines, which tmux draws."""

    def __init__(self, words: list[str]) -> None:
        self._tmux = [require("tmux"), "-L", f"test-{uuid.uuid4().hex[:8]}", "-f", "/dev/null"]
        line = f"{shlex.join(words)}; echo left with $?; exec cat"
        self._run("new-session", "-d", "-x", "80", "-y", "24", line)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._run("kill-server")

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(lines))

    @property
    def text(self) -> str:
        return self._run("capture-pane", "-p")

    def shows(self, *patterns: str) -> None:
        """Wait until each of *patterns* is on the screen."""
        try:
            polling.until(lambda: all(re.search(each, self.text) for each in patterns), 30)
        except AssertionError:
            pytest.fail(f"{patterns} did not appear:\n{self.text}")

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words], env=environment(), capture_output=True, text=True, check=True
        )
        return done.stdout


@pytest.fixture
def on_dumb_terminal() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that runs words on a terminal and gives the process and what it wrote."""
    opened: list[tuple[subprocess.Popen[bytes], int]] = []

    def run(words: list[str], **more: str) -> tuple[subprocess.Popen[bytes], Callable[[], str]]:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**more)
        )
        os.close(theirs)
        os.set_blocking(ours, False)
        opened.append((process, ours))
        written = bytearray()

        def text() -> str:
            try:
                while piece := os.read(ours, 65536):
                    written.extend(piece)
            except OSError:
                pass
            return written.decode().replace("\r\n", "\n")

        return process, text

    yield run
    for process, ours in opened:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=10)
        os.close(ours)


def test_the_view_fills_80_columns_and_24_lines_and_q_leaves_it(server):
    server.rested(server.session(), server.session())
    with Terminal(command(server, "--idle-for", "0.1s")) as terminal:
        terminal.shows(ADDRESS, r"\[#+\.+\] \S*\d+/37 slots", "SESSIONS +STATE", "ends 2", "q Quit")
        lines = terminal.text.splitlines()
        assert len(lines) == 24
        assert max(map(len, lines)) <= 80
        terminal.press("q")
        terminal.shows("left with 0")


def test_a_terminal_that_grows_shows_whole_names(server):
    server.rested(server.session(application_name="an-application-with-a-long-name"))
    with Terminal(command(server)) as terminal:
        terminal.shows("an-a\\S*…\\S*name")
        terminal.resize(140, 40)
        terminal.shows("an-application-with-a-long-name")
        terminal.press("q")
        terminal.shows("left with 0")


def test_the_view_outlives_a_restart_of_the_server(server):
    with Terminal(command(server)) as terminal:
        terminal.shows(ADDRESS)
        server.forget()
        server.server.halt()
        terminal.shows("No answer, waiting: default: ")
        server.server.start()
        terminal.shows(r"\] \S*\d+/37 slots")
        terminal.press("q")
        terminal.shows("left with 0")


def test_sessions_are_terminated_after_a_question(server):
    session = server.session()
    server.rested(session)
    with Terminal(command(server, "--idle-for", "0.1s")) as terminal:
        terminal.shows("ends 1")
        terminal.press("t")
        terminal.shows("Terminate 1 of 1 sessions of shop")
        terminal.press("y")
        terminal.shows("signalled 1")
        terminal.press("q")
        terminal.shows("left with 0")
    polling.until(lambda: not server.alive(session))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_view_with_exit_code_0(server, on_dumb_terminal, signum):
    process, text = on_dumb_terminal(command(server))
    polling.until(lambda: re.search(r"/37 slots", text()), 30)
    process.send_signal(signum)
    polling.until(lambda: (text(), process.poll() is not None)[1], 30)
    assert process.returncode == 0
    assert "Traceback" not in text()


def test_a_terminal_that_can_only_print_gets_reports(server, on_dumb_terminal):
    process, text = on_dumb_terminal(command(server), TERM="dumb")
    polling.until(lambda: text().count("What it means") > 1, 30)
    assert "\x1b" not in text()
    process.send_signal(signal.SIGTERM)
    polling.until(lambda: (text(), process.poll() is not None)[1], 30)
    assert process.returncode == 0


def test_without_textual_reports_are_printed_and_the_extra_is_named(server, on_dumb_terminal):
    words = command(server)
    words[2] = f"{WITHOUT_TEXTUAL}; main()"
    process, text = on_dumb_terminal(words)
    polling.until(lambda: text().count("What it means") > 1, 30)
    assert text().count("Install conn-guard[watch] for the full-screen view.") == 1
    process.send_signal(signal.SIGINT)
    polling.until(lambda: (text(), process.poll() is not None)[1], 30)
    assert process.returncode == 0


def test_reports_in_lines_do_not_load_textual(server, tmp_path):
    code = (
        "import sys; from conn_guard.management.commands import conn_report;"
        " sys.exit('textual' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
