"""``manage.py picture_watch``: makes the picture of ``conn_report --watch`` from the example."""

import os
import pty
import re
import subprocess
import sys
import threading
import time
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from demo.stage import PROJECT, set_stage
from demo.traffic import ask, asset_paths

COLUMNS, LINES = 100, 26
WATCHED_SECONDS = 30
FONT_FACES = re.compile(r"@font-face\s*\{.*?\}", re.DOTALL)


class Command(BaseCommand):
    help = "Pictures the live view of the leaking example."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options."""
        parser.add_argument("picture", type=Path, help="The SVG file to write.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Let the example leak while the view looks on, and keep what the view shows then."""
        with set_stage() as stage, TemporaryDirectory() as name, stage.serve("off") as server:
            # Textual's own variables: the seconds until it writes its screen to a file and ends.
            asked = {
                "TEXTUAL_SCREENSHOT": str(WATCHED_SECONDS),
                "TEXTUAL_SCREENSHOT_LOCATION": name,
                "TEXTUAL_SCREENSHOT_FILENAME": "watch.svg",
                "COLUMNS": str(COLUMNS),
                "LINES": str(LINES),
                "TERM": "xterm-256color",
                "COLORTERM": "truecolor",
            }
            who = ["--database", "operator", "--user", stage.role, "--idle-for", "5s"]
            process = self._on_terminal([*who, "--watch", "0.5s"], {**stage.environment, **asked})
            paths = cycle(asset_paths(server))
            while process.poll() is None:
                ask(server, [next(paths)], {200: 0, 500: 0})
                time.sleep(0.5)
            picture = Path(name) / "watch.svg"
            if not picture.exists():
                raise CommandError(f"The view ended with {process.returncode} and no picture.")
            # The faces are loaded from the web; a browser has a monospace font of its own.
            svg = FONT_FACES.sub("", picture.read_text())
            options["picture"].write_text("\n".join(map(str.rstrip, svg.splitlines())) + "\n")

    def _on_terminal(
        self, arguments: list[str], environment: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        ours, theirs = pty.openpty()
        command = [sys.executable, "manage.py", "conn_report", *arguments]
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)

        def drain() -> None:
            try:
                while os.read(ours, 65536):
                    pass
            except OSError:  # the view has ended
                os.close(ours)

        threading.Thread(target=drain, daemon=True).start()
        return process
