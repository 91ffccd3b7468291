"""``manage.py picture_admin``: makes the pictures of the admin page from the leaking example."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
from django.core.management.base import BaseCommand, CommandError, CommandParser

from demo.stage import LEASH, PROJECT, STARTS_WITHIN_SECONDS, Stage, set_stage
from demo.traffic import ask, asset_paths

LEAKS_SECONDS = 12
"""How long the example rests after the requests: long enough to tell a leak from a request."""
REQUESTS = 40
LOOKS = {"": (1280, 900), "-dark": (1280, 900), "-narrow": (400, 1400)}
FADE_MS = 500
"""The admin's colours change slowly."""
PAGE = "/admin/conn_guard_admin/session/"


class Command(BaseCommand):
    help = "Pictures the page Sessions of the leaking example's admin."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options."""
        parser.add_argument("folder", type=Path, help="Where the pictures are written.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Let the example leak, and picture the page in each look, and the question."""
        folder = options["folder"].resolve()
        with set_stage() as stage, stage.serve("off") as server:
            ask(server, islice(cycle(asset_paths(server)), REQUESTS), {200: 0, 500: 0})
            time.sleep(LEAKS_SECONDS)
            with self._admin(stage) as (address, password):
                self._pictures(address, password, folder)

    @contextmanager
    def _admin(self, stage: Stage) -> Iterator[tuple[str, str]]:
        """Serve the admin with its static files; give its address and a superuser's password."""
        password = secrets.token_urlsafe(12)
        account = ["--username", "operator", "--email", "operator@example.org"]
        done = stage.manage(
            "createsuperuser", "--noinput", *account, DJANGO_SUPERUSER_PASSWORD=password
        )
        if done.returncode:
            raise CommandError(done.stderr.strip())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = f"127.0.0.1:{probe.getsockname()[1]}"
        environment = {
            **stage.environment,
            "EXAMPLE_GUARD": "middleware",
            "DEBUG": "true",
            "CONN_GUARD": json.dumps({"REAP_IDLE_FOR": 10}),
            "APPLICATION_NAME": "example:admin",
        }
        command = [sys.executable, "manage.py", "runserver", "--noreload", place]
        process = subprocess.Popen(
            ["/bin/sh", "-c", LEASH, "sh", *command],
            cwd=PROJECT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._await(f"http://{place}/admin/login/")
            yield f"http://{place}", password
        finally:
            process.communicate()

    def _await(self, address: str) -> None:
        until = time.monotonic() + STARTS_WITHIN_SECONDS
        while time.monotonic() < until:
            try:
                httpx.get(address, trust_env=False).raise_for_status()
                return
            except httpx.TransportError:
                time.sleep(0.1)
        raise CommandError("runserver did not start.")

    def _pictures(self, address: str, password: str, folder: Path) -> None:
        # Only here: the example's other commands run without a browser.
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page()
            page.goto(f"{address}/admin/login/?next={PAGE}")
            page.fill("[name=username]", "operator")
            page.fill("[name=password]", password)
            page.click("[type=submit]")
            for suffix, (width, height) in LOOKS.items():
                page.set_viewport_size({"width": width, "height": height})
                page.emulate_media(color_scheme="dark" if suffix == "-dark" else "light")
                page.wait_for_timeout(FADE_MS)
                page.screenshot(path=folder / f"admin{suffix}.png")
            page.set_viewport_size({"width": 1280, "height": 500})
            page.click("#group_list button >> nth=0")
            page.wait_for_timeout(FADE_MS)
            page.screenshot(path=folder / "admin-question.png")
            browser.close()
