"""``manage.py monitor``: an incident under the alerts of the docs, with a real Prometheus."""

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from demo import panels
from demo.incident import Event, Incident, TooLongError
from demo.meter import Meter
from demo.prometheus import run_prometheus
from demo.stage import set_stage


class Command(BaseCommand):
    help = (
        "Lets the example leak, the alerts fire, idle_reaper and conn_guard go in and the alerts"
        " resolve, with Prometheus and node exporter, and prints when. A minute of the alert rules"
        " is a second here. Exits with 1 if an alert does not fire or resolve."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options."""
        parser.add_argument(
            "--picture", type=Path, help="Where the dashboard's panels are drawn as an SVG file."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Play the incident, and print its timeline line by line."""
        picture = options["picture"]
        if picture and not os.access(picture.parent, os.W_OK):
            raise CommandError(f"--picture: {picture} can't be written.", returncode=2)
        if find_spec("prometheus_client") is None:
            raise CommandError(
                "prometheus-client is not installed: type pip install 'conn-guard[prometheus]'.",
                returncode=2,
            )
        with (
            set_stage() as stage,
            TemporaryDirectory(prefix="conn_guard-monitor-") as folder,
            run_prometheus(Path(folder)) as prometheus,
            Meter(stage) as meter,
        ):
            began: list[float] = []

            def say(event: Event) -> None:
                began.append(event.at)
                seconds = event.at - began[0]
                used = f"{event.used}/{stage.slots}"
                self.stdout.write(f"{seconds:5.1f} s  {used:>5} slots  {event.text}")

            incident = Incident(stage, meter, prometheus, say)
            try:
                incident.run()
            except TooLongError as error:
                raise CommandError(str(error), returncode=1) from None
            if picture:
                panels.write(prometheus, incident.events, picture)
