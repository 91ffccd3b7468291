"""``manage.py monitor``: an incident under the alerts of the docs, with a real Prometheus."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
from django.core.management.base import BaseCommand, CommandError, CommandParser

from demo import panels
from demo.incident import Event, IncidentError, staged_incident


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
        began: list[float] = []

        def say(event: Event) -> None:
            began.append(event.at)
            seconds = event.at - began[0]
            self.stdout.write(f"{seconds:5.1f} s  {event.used:3} sessions  {event.text}")

        with staged_incident(say) as incident:
            try:
                incident.run()
            except (IncidentError, httpx.HTTPError) as error:
                raise CommandError(str(error), returncode=1) from None
            if picture:
                panels.write(incident.prometheus, incident.events, picture)
