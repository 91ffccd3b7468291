"""``manage.py picture_report``: makes the pictures of conn_report from the leaking example."""

import subprocess
import time
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from demo.stage import Stage, set_stage
from demo.traffic import ask, asset_paths

LEAKS_SECONDS = 15
"""How long the example rests after the requests: long enough to tell a leak from a request."""
REQUESTS = 60
SIZES = {"light": (1100, 1400), "dark": (1100, 1400), "phone": (420, 2100)}


class Command(BaseCommand):
    help = "Pictures conn_report's page of the leaking example, and prints both text reports."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options."""
        parser.add_argument("folder", type=Path, help="Where conn_report.png is written.")
        parser.add_argument("--every-size", action="store_true", help="Dark and phone as well.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Let the example leak, report, picture the page; then report on the cured example."""
        with set_stage() as stage, TemporaryDirectory() as name:
            for guard in ("off", "middleware"):
                with stage.serve(guard) as server:
                    ask(server, islice(cycle(asset_paths(server)), REQUESTS), {200: 0, 500: 0})
                    time.sleep(LEAKS_SECONDS)
                    self.stdout.write(f"EXAMPLE_GUARD={guard}\n{self._report(stage)}")
                    if guard == "off":
                        page = Path(name) / "report.html"
                        self._report(stage, "--format", "html", "--output", str(page))
                        for look in SIZES if options["every_size"] else ["light"]:
                            suffix = "" if look == "light" else f"-{look}"
                            picture = options["folder"] / f"conn_report{suffix}.png"
                            self._picture(page, picture, look)

    def _report(self, stage: Stage, *options: str) -> str:
        done = stage.manage("conn_report", "--database", "operator", "--user", stage.role, *options)
        if done.returncode:
            raise CommandError(done.stderr.strip())
        return done.stdout

    def _picture(self, page: Path, picture: Path, look: str) -> None:
        width, height = SIZES[look]
        scheme = "dark" if look == "dark" else "light"
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            f"--window-size={width},{height}",
            f"--screenshot={picture.resolve()}",
            page.as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True)
